"""Responses of several turns: the built-in tools that the proxy runs itself, as OpenAI shows them.

`image_tool` is a tool as the model sees it, `image_item` as the client does; `mcp_tool` reads which
of the operator's tools a request selects, `mcp_items` items of them that come back, `mcp_calls` are
those that grow; `turns` makes messages of a turn.
"""
