#!/bin/sh
# `make pythons`: the tests without servers on every Python of this machine between the newest, on
# which `make test` runs them, and the oldest, on which `make lowest` does. Each has a virtual
# environment of its own (.venv-3.12). The arguments go to pytest.
set -eu
cd "$(dirname "$0")/.."

minor() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])'; }

main=$(minor .venv/bin/python)
pythons=$(unset PYTHON && sh install/python.sh --all)
oldest=$(minor "$(printf '%s\n' "$pythons" | tail -n 1)")
found=
# A path may contain spaces; the list stays off the tests' standard input.
while IFS= read -r python <&3; do
    version=$(minor "$python")
    [ "$version" != "$main" ] && [ "$version" != "$oldest" ] || continue
    found="$found $version"
    venv=.venv-$version
    VENV=$venv PYTHON=$python sh install/venv.sh dev
    echo "Python $version:"
    "$venv/bin/python" -m pytest -m "not server and not once" --hypothesis-profile=few "$@"
done 3<<END
$pythons
END
if [ -z "$found" ]; then
    echo "This machine has no Python between $main (make test) and $oldest (make lowest)."
fi
