"""PostgreSQL, for whatever keeps something there: connections, notifications, batches, the clock, the schema."""
