"""HTTP for who looks after the server, and for clients that look after themselves."""
