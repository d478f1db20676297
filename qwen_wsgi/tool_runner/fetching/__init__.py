"""The tool `fetch`: what it may connect to, and what it makes of a page."""
