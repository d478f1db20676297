"""What must outlast the server: one SQLite file for all workers, with tables of each feature."""
