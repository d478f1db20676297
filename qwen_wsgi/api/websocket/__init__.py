"""GET /v1/responses: the Responses API over a WebSocket."""
