"""HTTP out: which account answers, what its host is like, and how its bytes come back."""
