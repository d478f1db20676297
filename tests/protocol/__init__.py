"""Tests of the translation between dialects: pure functions."""
