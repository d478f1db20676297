"""Reads documents that clients attach, in processes of their own."""
