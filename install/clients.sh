#!/bin/sh
# `make clients`: install the clients that docs/clients.md names into .clients, in the versions that
# were tested, and run the tests that need them. The arguments go to pytest.
#
# 1.5 GB, and a minute with a good network. Costs nothing while tests/clients.json stays the same.
set -eu
cd "$(dirname "$0")/.."
into=.clients
wanted=$(cat tests/clients.json tests/clients.txt tests/clients-tools.txt | cksum)

if [ "$(cat "$into/installed" 2>/dev/null)" != "$wanted" ]; then
    command -v npm >/dev/null || {
        echo "qwen-proxy: npm is not installed; the clients are programs of Node 20 or newer." >&2
        exit 1
    }
    echo "Installing the clients of tests/clients.json into $into ..." >&2
    mkdir -p "$into"
    cp tests/clients.json "$into/package.json"
    npm install --prefix "$into" --no-audit --no-fund --no-package-lock --loglevel=error
    [ -x "$into/venv/bin/python" ] || .venv/bin/python -m venv "$into/venv"
    PIP_DISABLE_PIP_VERSION_CHECK=1 "$into/venv/bin/python" -m pip install --quiet -r tests/clients.txt
    # Servers of tools run as another user, so their Python must not be below a home directory.
    if python=$(sh install/python.sh --system); then
        [ -x "$into/tools/bin/python" ] || "$python" -m venv "$into/tools"
        PIP_DISABLE_PIP_VERSION_CHECK=1 "$into/tools/bin/python" -m pip install --quiet -r tests/clients-tools.txt
    fi
    printf '%s\n' "$wanted" >"$into/installed"
fi
exec .venv/bin/python -m pytest -m clients "$@"
