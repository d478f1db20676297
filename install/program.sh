# Sourced by install/install.sh: installs the package, with its pinned dependencies, into $venv.
#
#   $python   for a new virtual environment
#   $build    an empty directory
#   $root     DESTDIR, and $prefix below it: no file of the environment names $root afterwards
#   UPGRADE=0 keep the dependencies that are there, as far as they suffice

say "Installing into $venv with $("$python" -V) ..."
made_by=$("$python" -c 'import sys; print(sys.version, sys.base_prefix)')
if [ "$(cat "$venv/qwen-proxy-python" 2>/dev/null)" != "$made_by" ] ||
    ! "$venv/bin/python" -c 'import pip' 2>/dev/null; then
    rm -rf "$venv"
    "$python" -m venv "$venv"
    printf '%s\n' "$made_by" >"$venv/qwen-proxy-python"
fi

# Built from a copy, so that a build as root leaves no file of root in the checkout.
for item in setup.py setup.cfg pyproject.toml README.md LICENSE gunicorn.conf.py wsgi.py qwen_wsgi \
    install share; do
    [ ! -e "$item" ] || cp -R "$item" "$build/"
done
# The copy has no git: it gets the version as a file.
"$venv/bin/python" -B install/version.py "$build/qwen_wsgi/_version.py"
pip() {
    PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore "$venv/bin/python" -m pip "$@"
}
# What is staged is compiled at the end, by forget_staging.
uncompiled=${root:+--no-compile}
# setuptools is installed into the environment, so that nothing unpinned takes part in the build, and
# an upgrade with unchanged dependencies needs no network.
ours() { pip install --quiet $uncompiled --no-build-isolation "$@"; }
# Without an index pip takes what is there, or refuses.
if [ "${UPGRADE-}" = 0 ] && ours --no-index "$build[pdf,redis,tools]" 2>/dev/null; then
    say "Kept the dependencies (UPGRADE=0); sudo qwen-proxy doctor names those that are outdated."
else
    [ "${UPGRADE-}" != 0 ] || say "UPGRADE=0 cannot be followed: what is there does not suffice."
    # pip first, so that the new one installs the rest. All files are checked before any is installed.
    pinned=$build/qwen_wsgi/constraints.txt
    sed -n '/^pip==/,/[^\\]$/p' "$pinned" >"$build/pip.txt"
    if ! { pip install --quiet $uncompiled --require-hashes -r "$build/pip.txt" &&
        pip install --quiet $uncompiled --require-hashes -r "$pinned" &&
        ours --no-deps "$build"; }; then
        fail "pip could not install the packages (see its message above); it needs PyPI or a mirror." \
            "nothing else was changed."
    fi
fi
# The command tells its users to call it through sudo (qwen_wsgi/cli/invocation.py).
: >"$venv/qwen-proxy-installed"
if [ -n "$root" ]; then
    forget_staging "$root" "$prefix" "$venv"
fi
