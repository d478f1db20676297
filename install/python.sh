#!/bin/sh
# Print the newest Python on PATH that can run the proxy and create a virtual environment.
#
#   install/python.sh [--system]
#
# --system skips a Python that a hardened system service cannot read (in a home directory or /tmp,
# such as pyenv's). PYTHON=/path/to/python selects one; if it is unusable, the message says why.
set -eu

system=
[ "${1-}" = --system ] && system=1

# Print one word about a Python (ok, old, novenv or private), its version and its path.
probe() {
    "$1" -I - "$system" 2>/dev/null <<'PY'
import os, sys
verdict = "ok"
if sys.version_info < (3, 11):
    verdict = "old"
else:
    try:
        import ensurepip, venv
    except ImportError:
        verdict = "novenv"
    home = os.path.realpath(sys.base_prefix) + "/"
    if sys.argv[1] and home.startswith(("/home/", "/root/", "/tmp/", "/run/user/")):
        verdict = "private"
# In an active virtual environment, its base Python: .venv itself may be replaced soon.
path = getattr(sys, "_base_executable", None) or sys.executable
print(verdict, "%d.%d" % sys.version_info[:2], path)
PY
}

fail() {
    printf 'qwen-proxy: %s\n' "$@" >&2
    exit 1
}

if [ -n "${PYTHON-}" ]; then
    set -- "$PYTHON"
else
    # Newest first, up to the newest for which the dependencies have wheels.
    set -- python3.14 python3.13 python3.12 python3.11 python3
    # root's PATH may begin with a private Python, which the service cannot read.
    [ -z "$system" ] || set -- "$@" /usr/local/bin/python3 /usr/bin/python3
fi

old='' novenv='' private=''
for name; do
    command -v "$name" >/dev/null 2>&1 || continue
    # A pyenv shim of a version that is not selected only prints an error.
    found=$(probe "$name") || continue
    case $found in
    ok\ *)
        printf '%s\n' "${found#ok * }"
        exit 0
        ;;
    old\ *) old=${old:-${found#old }} ;;
    novenv\ *) novenv=${novenv:-${found#novenv }} ;;
    private\ *) private=${private:-${found#private }} ;;
    esac
done

if [ -n "$novenv" ]; then
    package=python3-venv
    # A Python 3.13 beside Debian's own 3.11 has a package of its own.
    default=$(probe python3 || true)
    case $default in
    *" ${novenv%% *} "*) ;;
    *) [ -z "${default}" ] || package=python${novenv%% *}-venv ;;
    esac
    fail "Python ${novenv%% *} (${novenv#* }) cannot create a virtual environment." \
        "install the missing part: sudo apt-get install $package"
elif [ -n "$private" ]; then
    fail "Python ${private%% *} (${private#* }) is in a directory that the service cannot read." \
        "install the system's own: sudo apt-get install python3 python3-venv" \
        "or name another one: sudo make install PYTHON=/usr/local/bin/python3.12"
elif [ -n "$old" ]; then
    fail "needs Python 3.11 or newer; found ${old%% *} (${old#* })." \
        "install a newer one: sudo apt-get install python3 python3-venv" \
        "or name it: make PYTHON=/path/to/python3.12"
elif [ -n "${PYTHON-}" ]; then
    fail "PYTHON=$PYTHON cannot be run."
else
    fail "there is no Python 3 on PATH." \
        "install it: sudo apt-get install python3 python3-venv"
fi
