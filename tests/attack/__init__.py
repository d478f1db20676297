"""Hostile clients and hostile upstreams, for as long as one likes: `python -m tests.attack`."""
