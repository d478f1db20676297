"""A login that several boxes share through Redis: which one is newest, and which box renews it."""
