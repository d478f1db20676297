"""The console over HTTP: a blueprint per page."""
