"""Blueprints of the dialects, and what they share."""
