"""What an upstream's failure means: patterns, causes, waits. Pure."""
