"""What happened: one record per call."""
