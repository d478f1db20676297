"""The description of the HTTP API in OpenAPI 3.1, and the tables that it is made from."""
