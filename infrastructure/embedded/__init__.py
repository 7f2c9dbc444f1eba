"""The embedded default: a data directory with PostgreSQL in it."""
