"""A Redis of its own for this directory's tests."""
