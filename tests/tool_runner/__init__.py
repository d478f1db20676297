"""The process that runs tools."""
