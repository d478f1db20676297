"""What the workers of the box share: SQLite databases and shared memory."""
