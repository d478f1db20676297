"""What the translations of several dialects into chat share. Pure."""
