#!/bin/sh
# Print the newest Python of this machine that can run the proxy and make a virtual environment.
#
#   install/python.sh [--system | --all]
#
# Looked at are PATH, Debian's directories and pyenv's versions (PYTHON_PLACES: others than these).
# --all prints one of each version, the newest first.
# --system leaves out a Python that a hardened system service cannot reach (below a home directory
# or /tmp, as pyenv's are). PYTHON=/path/to/python takes that one, or says why it cannot be used.
set -eu

system='' all=''
case ${1-} in
--system) system=1 ;;
--all) all=1 ;;
esac
places=${PYTHON_PLACES-/usr/local/bin /usr/bin ${PYENV_ROOT:-${HOME-}/.pyenv}/versions/*/bin}

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
    # Newest first. No further than the newest that the dependencies have wheels for.
    set --
    for name in python3.14 python3.13 python3.12 python3.11 python3; do
        # root's PATH may begin with a Python of its own, which the service cannot reach.
        set -- "$@" "$name"
        for place in $places; do
            set -- "$@" "$place/$name"
        done
    done
fi

old='' novenv='' private='' seen=' '
for name; do
    command -v "$name" >/dev/null 2>&1 || continue
    # A pyenv shim of a version that is not selected only prints an error.
    found=$(probe "$name") || continue
    case $found in
    ok\ *)
        version=${found#ok }
        version=${version%% *}
        case $seen in *" $version "*) continue ;; esac
        seen="$seen$version "
        printf '%s\n' "${found#ok * }"
        [ -n "$all" ] || exit 0
        ;;
    old\ *) old=${old:-${found#old }} ;;
    novenv\ *) novenv=${novenv:-${found#novenv }} ;;
    private\ *) private=${private:-${found#private }} ;;
    esac
done
[ "$seen" = ' ' ] || exit 0

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
