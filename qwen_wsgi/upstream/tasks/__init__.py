"""Model Studio's tasks: work that takes longer than an answer may."""
