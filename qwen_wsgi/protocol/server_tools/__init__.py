"""Tools that the proxy runs for a model (MCP servers, Python), as every dialect needs them.

`offer` has what a client may use, `functions` what the model sees of it, `results` what the model
is told of a call.
"""
