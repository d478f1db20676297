"""One HTTP exchange with an upstream: connections, framing, bodies."""
