#!/bin/sh
# `make pythons`: the tests without servers on every other Python that this machine has, each with a
# virtual environment of its own (.venv-3.12). The arguments go to pytest.
set -eu
cd "$(dirname "$0")/.."

minor() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])'; }

main=$(minor .venv/bin/python)
others=$(unset PYTHON && sh install/python.sh --all)
found=
# A path may contain spaces; the list stays off the tests' standard input.
while IFS= read -r python <&3; do
    version=$(minor "$python")
    [ "$version" != "$main" ] || continue
    found="$found $version"
    venv=.venv-$version
    VENV=$venv PYTHON=$python sh install/venv.sh dev
    echo "Python $version:"
    "$venv/bin/python" -m pytest -m "not server" "$@"
done 3<<END
$others
END
if [ -z "$found" ]; then
    echo "This machine has no other Python than $main that is new enough."
fi
