"""Endpoints for logins at the web API: is one valid, a fresh one, and chats to be deleted."""
