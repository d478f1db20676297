"""The two locks around a refresh: ours (flock) and the CLI's (an exclusive file)."""
