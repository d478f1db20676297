"""Routes of Model Studio's native API, and those that stand beside it. Pure, no I/O."""
