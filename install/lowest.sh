#!/bin/sh
# `make lowest`: the tests without servers with the lowest versions that setup.cfg allows, on the
# oldest Python that this machine has, in .venv-lowest. The arguments go to pytest.
set -eu
cd "$(dirname "$0")/.."

oldest=$(sh install/python.sh --all | tail -n 1)
VENV=.venv-lowest PYTHON=$oldest sh install/venv.sh lowest
.venv-lowest/bin/python -m pytest -m "not server and not once" --hypothesis-profile=few "$@"
