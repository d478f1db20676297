"""Tests of what several boxes share."""
