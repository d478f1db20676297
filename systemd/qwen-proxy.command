#!/bin/sh
# qwen-proxy, installed by `make install`. For root it acts as the service: with its user, its
# settings and its state. Anybody else just runs the command.
exec /opt/qwen-proxy/venv/bin/python -I -m qwen_wsgi.cli.as_service "$@"
