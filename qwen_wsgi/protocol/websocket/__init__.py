"""OpenAI's Responses API over a WebSocket, without any I/O.

`handshake` checks the request that begins one, `frames` turns bytes into messages and back (RFC
6455), `events` reads what clients send and renders what they get, `lanes` says which response is
created when.
"""
