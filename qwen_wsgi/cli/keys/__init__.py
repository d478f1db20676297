"""`qwen-proxy keys`: makes, shows, changes, rotates and revokes client keys."""
