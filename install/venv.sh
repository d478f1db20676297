#!/bin/sh
# Create or update .venv in the checkout, with the proxy installed editable.
#
#   install/venv.sh run     what `make run` needs
#   install/venv.sh dev     and the tools of `make test`
#   install/venv.sh lowest  the same, in the lowest versions that setup.cfg allows
#
#   VENV=.venv-3.12         another place than .venv
#
# Costs nothing, and needs no network, unless setup.cfg, pyproject.toml, the place of the checkout
# or PYTHON changed since the last time. The version of the checkout is written down each time.
set -eu
what=$1
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}

# Includes the path: the scripts of a virtual environment contain it.
wanted=$(cat setup.cfg pyproject.toml | cksum)" ${PYTHON-} $(pwd -P)"
stamp=$venv/qwen-proxy-$what

installed() {
    [ -x "$venv/bin/python" ] && [ "$(cat "$1" 2>/dev/null)" = "$wanted" ] &&
        "$venv/bin/python" -c '' 2>/dev/null
}
write_version() {
    "$venv/bin/python" -B install/version.py qwen_wsgi/_version.py
}

if installed "$venv/qwen-proxy-dev" || installed "$stamp"; then
    write_version
    exit 0
fi

python=$(sh install/python.sh)
if [ -d "$venv" ] && [ ! -w "$venv" ]; then
    echo "qwen-proxy: $venv belongs to another user; remove it: sudo rm -r $venv" >&2
    exit 1
fi
# With the same Python and path, keep it and only update the packages.
made_by="$("$python" -c 'import sys; print(sys.version, sys.base_prefix)') $(pwd -P)"
if [ "$(cat "$venv/qwen-proxy-python" 2>/dev/null)" != "$made_by" ] ||
    ! "$venv/bin/python" -c 'import pip' 2>/dev/null; then
    echo "Making $venv with $("$python" -V) ..." >&2
    rm -rf "$venv"
    "$python" -m venv "$venv"
    printf '%s\n' "$made_by" >"$venv/qwen-proxy-python"
fi

constraints=$venv/constraints.txt
: >"$constraints"
package='.[pdf,redis,tools]'
[ "$what" = run ] || package='.[dev]'
[ "$what" != lowest ] || "$python" -B install/requirements.py lowest >"$constraints"
echo "Installing the packages that setup.cfg names into $venv ..." >&2
pip() {
    PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PIP_CONSTRAINT=$constraints \
        "$venv/bin/python" -m pip "$@"
}
# setuptools goes into $venv itself, so that a later run needs no network to build the package.
if ! { pip install --quiet --upgrade pip 'setuptools >= 78.1.1' &&
    pip install --quiet --no-build-isolation --editable "$package"; }; then
    echo "qwen-proxy: pip could not install them (see its message above); it needs PyPI or a mirror." >&2
    exit 1
fi
write_version
printf '%s\n' "$wanted" >"$stamp"
