"""`make install` on a Debian with systemd as PID 1; not among the tests, see `__main__`."""
