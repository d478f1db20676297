"""The process that runs tools outside the workers: MCP servers, a Python interpreter, `fetch`."""
