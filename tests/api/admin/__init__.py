"""HTTP for who looks after the server."""
