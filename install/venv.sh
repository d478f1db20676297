#!/bin/sh
# Create or update .venv in the checkout, with the proxy installed editable.
#
#   install/venv.sh run     for `make run`
#   install/venv.sh dev     with the tools of `make test`
#
# It does nothing, and needs no network, unless setup.cfg, pyproject.toml, the path of the checkout or
# PYTHON changed since the last run.
set -eu
what=$1
cd "$(dirname "$0")/.."

# Includes the path: the scripts of a virtual environment contain it.
wanted=$(cat setup.cfg pyproject.toml | cksum)" ${PYTHON-} $(pwd -P)"
stamp=.venv/qwen-proxy-$what

installed() {
    [ -x .venv/bin/python ] && [ "$(cat "$1" 2>/dev/null)" = "$wanted" ] &&
        .venv/bin/python -c '' 2>/dev/null
}

if installed .venv/qwen-proxy-dev || installed "$stamp"; then
    exit 0
fi

python=$(sh install/python.sh)
if [ -d .venv ] && [ ! -w .venv ]; then
    echo "qwen-proxy: .venv belongs to another user; remove it: sudo rm -r .venv" >&2
    exit 1
fi
# With the same Python and path, keep it and only update the packages.
made_by="$("$python" -c 'import sys; print(sys.version, sys.base_prefix)') $(pwd -P)"
if [ "$(cat .venv/qwen-proxy-python 2>/dev/null)" != "$made_by" ] ||
    ! .venv/bin/python -c 'import pip' 2>/dev/null; then
    echo "Creating .venv with $("$python" -V) ..." >&2
    rm -rf .venv
    "$python" -m venv .venv
    printf '%s\n' "$made_by" >.venv/qwen-proxy-python
fi

package=.
[ "$what" = dev ] && package='.[dev]'
echo "Installing the packages of setup.cfg into .venv ..." >&2
pip() {
    PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore .venv/bin/python -m pip "$@"
}
# setuptools is installed into .venv, so that a later run needs no network to build the package.
if ! { pip install --quiet 'setuptools >= 70.1' &&
    pip install --quiet --no-build-isolation --editable "$package"; }; then
    echo "qwen-proxy: pip could not install them (see its message above); it needs PyPI or a mirror." >&2
    exit 1
fi
printf '%s\n' "$wanted" >"$stamp"
