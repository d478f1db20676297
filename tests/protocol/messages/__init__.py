"""The Messages API: requests into chat, answers back."""
