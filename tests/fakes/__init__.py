"""Stand-ins for the outside world and for what constructors take."""
