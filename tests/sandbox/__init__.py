"""The sandbox itself: each fault must do what its description says."""
