"""What the workers of the box share: SQLite databases and tables in files."""
