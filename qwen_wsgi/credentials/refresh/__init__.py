"""Refreshing a login: when, under which locks, and how the new token is made durable."""
