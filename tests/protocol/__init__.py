"""Pure code: what goes in and what must come out."""
