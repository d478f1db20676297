"""What reads bytes of strangers, given any bytes: `python -m tests.attack.fuzz`."""
