"""Recipes for clients."""
