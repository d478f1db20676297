"""What the two sides say, as pure functions: no I/O, no clock, nothing but values in and out."""
