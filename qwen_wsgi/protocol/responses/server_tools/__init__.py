"""Responses of several turns: the built-in tools that the proxy runs itself, as OpenAI shows them.

`image_tool` is a tool as the model sees it, `image_item` as the client does; `turns` makes the
request of the next turn.
"""
