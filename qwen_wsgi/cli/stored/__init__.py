"""Commands about what the server has stored: state (backups), usage, recordings."""
