"""Talks to the OAuth endpoints: device flow, refresh requests, and what their answers prove."""
