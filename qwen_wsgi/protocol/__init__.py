"""Translates between the dialects of clients and upstreams, as pure functions: no I/O, no clock."""
