"""What several boxes share, in one Redis (or Valkey)."""
