"""MCP servers: the operator's, and those at addresses of clients."""
