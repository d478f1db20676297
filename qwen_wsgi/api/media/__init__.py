"""Blueprints for pictures, videos, speech and the like."""
