"""Backups of the embedded database: taken, archived onwards, restored to a moment, and noted."""
