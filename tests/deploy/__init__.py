"""What an operator runs: Makefile, install, systemd unit, nginx site, gunicorn configuration."""
