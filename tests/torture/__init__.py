"""Many processes that fight for one login: `python -m tests.torture`."""
