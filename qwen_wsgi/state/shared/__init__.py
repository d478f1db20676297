"""What the boxes of one Redis share of their state, beside what each keeps for itself."""
