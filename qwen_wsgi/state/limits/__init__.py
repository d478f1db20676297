"""What clients have taken of their limits, counted by all workers together in files."""
