"""Hundreds of streams with every fault, for as long as one likes: `python -m tests.soak`."""
