"""HTTP out: real sockets where bytes matter, stand-ins through constructors elsewhere."""
