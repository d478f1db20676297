"""HTTP in, through the test client: who may call, and what every answer looks like."""
