#!/bin/sh
# `make deb`: builds dist/qwen-proxy_VERSION_ARCHITECTURE.deb with dpkg-deb; root is not needed.
#
#   PYTHON=/usr/bin/python3   the Python of the Debian that it is for: its minor version is pinned.
#                             It must run here, because pip chooses the packages with it
#   DIST=dist                 where the package goes
#   LEVEL=4                   how far xz compresses it, from 0 (quick) to 9 (small)
#   DEBFULLNAME= DEBEMAIL=    who is named as its maintainer
#
# Inside is the layout of `make install`, in /usr/lib/qwen-proxy. The environment is put together by
# hand (pyvenv.cfg, a link to Python, pip --target), so that no file names the place of the build.
set -eu
umask 022
cd "$(dirname "$0")/.."

say() { printf '%s\n' "$*"; }
fail() {
    printf 'qwen-proxy: %s\n' "$@" >&2
    exit 1
}

for program in dpkg-deb dpkg strip; do
    command -v "$program" >/dev/null 2>&1 || fail \
        "$program is missing. A package can be built on Debian: sudo apt-get install dpkg-dev binutils"
done
python=${PYTHON:-/usr/bin/python3}
case $python in
/usr/bin/python3*) ;;
*) fail "PYTHON must be one of Debian's own, /usr/bin/python3*, not '$python'." ;;
esac
minor=$("$python" -I -c 'import sys; print("%d.%d" % sys.version_info[:2])') ||
    fail "$python cannot be run: sudo apt-get install python3"
case $minor in
3.1[1-9]) ;;
*) fail "$python is $minor; needs Python 3.11 or newer." ;;
esac
PYTHON='' sh install/venv.sh run
pip() {
    PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore .venv/bin/python -m pip "$@"
}

prefix=/usr/lib/qwen-proxy
dist=${DIST:-dist}
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
root=$build/root
venv=$root$prefix/venv
site=$venv/lib/python$minor/site-packages

# --- the program -------------------------------------------------------------------------------

say "Building for Debian's Python $minor ..."
mkdir -p "$build/source" "$site" "$venv/bin"
for item in setup.py setup.cfg pyproject.toml README.md LICENSE gunicorn.conf.py wsgi.py qwen_wsgi \
    install share; do
    cp -R "$item" "$build/source/"
done
.venv/bin/python -B install/version.py "$build/source/qwen_wsgi/_version.py"
pip wheel --quiet --no-deps --no-build-isolation --wheel-dir "$build/wheel" "$build/source" ||
    fail "the package cannot be built (see above)."
# Of the pinned packages those that install others are not needed.
awk '/^(pip|setuptools)==/ { skip = 1 } /^[A-Za-z0-9]/ && !/^(pip|setuptools)==/ { skip = 0 } !skip' \
    qwen_wsgi/constraints.txt >"$build/pinned.txt"
target() { pip --python "$python" install --quiet --no-compile --no-deps --target "$site" "$@"; }
target --require-hashes -r "$build/pinned.txt" ||
    fail "pip could not install the packages (see above); it needs PyPI or a mirror."
rm -rf "$site/bin" "$site/share"
target "$build/wheel/"*.whl
# What nobody loads: scripts, data, zstandard's second implementation, tests, sources in C.
rm -rf "$site/bin" "$site/share" "$site/"qwen_wsgi-*.dist-info/direct_url.json \
    "$site/zstandard/"_cffi*.so "$site/gevent/tests" \
    "$site/greenlet/tests"
find "$site" \( -name '*.c' -o -name '*.h' -o -name '*.pyx' -o -name '*.pxd' -o -name __pycache__ \) \
    -prune -exec rm -rf {} +
# No file there is run by its name.
find "$site" -name '*.py' -exec sed -i '1s/^#!.*//' {} +
find "$site" -name '*.so*' -type f -exec strip --strip-unneeded {} +
find "$root" -type f -exec chmod 0644 {} +
ln -s "../../../../bin/python$minor" "$venv/bin/python"
printf 'home = /usr/bin\ninclude-system-site-packages = false\nversion = %s\n' "$minor" \
    >"$venv/pyvenv.cfg"
# The command tells its users to call it through sudo (qwen_wsgi/cli/invocation.py).
: >"$venv/qwen-proxy-installed"

# --- unit, command, settings, site, documents ----------------------------------------------------

moved() {
    sed -e "s|/opt/qwen-proxy/|$prefix/|g" -e 's/installed by `make install`/installed by its package/' "$1"
}
put() { install -D -m "$1" "$2" "$root$3"; }
moved systemd/qwen-proxy.service >"$build/unit"
put 0644 "$build/unit" /lib/systemd/system/qwen-proxy.service
put 0644 systemd/qwen-proxy.socket /lib/systemd/system/qwen-proxy.socket
moved systemd/qwen-proxy-tools.service >"$build/tools"
put 0644 "$build/tools" /lib/systemd/system/qwen-proxy-tools.service
put 0644 systemd/qwen-proxy-tools.socket /lib/systemd/system/qwen-proxy-tools.socket
moved systemd/qwen-proxy.command >"$build/command"
put 0755 "$build/command" /usr/bin/qwen-proxy
put 0644 systemd/qwen-proxy.env.example /usr/share/qwen-proxy/qwen-proxy.env
put 0644 systemd/qwen-proxy.env.example /etc/qwen-proxy/qwen-proxy.env.example
put 0644 systemd/owner.conf.example /etc/qwen-proxy/owner.conf.example
put 0644 nginx/qwen-proxy.conf /etc/nginx/sites-available/qwen-proxy.conf
put 0644 share/man/man1/qwen-proxy.1 /usr/share/man/man1/qwen-proxy.1
put 0644 share/bash-completion/completions/qwen-proxy \
    /usr/share/bash-completion/completions/qwen-proxy
put 0644 share/zsh/site-functions/_qwen-proxy /usr/share/zsh/vendor-completions/_qwen-proxy
put 0644 share/fish/vendor_completions.d/qwen-proxy.fish \
    /usr/share/fish/vendor_completions.d/qwen-proxy.fish
gzip -9n "$root/usr/share/man/man1/qwen-proxy.1"

maintainer="${DEBFULLNAME:-The qwen-proxy developers} <${DEBEMAIL:-qwen-proxy@localhost}>"
version=$(.venv/bin/python -B install/version.py | sed 's/\.dev/~dev/')
doc=$root/usr/share/doc/qwen-proxy
mkdir -p "$doc" "$root/usr/share/lintian/overrides"
cp README.md "$doc/README.md"
gzip -9nc CHANGELOG.md >"$doc/NEWS.gz"
"$python" -I install/deb.py changelog "$version" "$maintainer" | gzip -9n >"$doc/changelog.gz"
"$python" -I install/deb.py copyright "$site" >"$doc/copyright"
cp debian/lintian-overrides "$root/usr/share/lintian/overrides/qwen-proxy"
chmod 0644 "$doc/"* "$root/usr/share/lintian/overrides/qwen-proxy"

# --- the package -------------------------------------------------------------------------------

architecture=$(dpkg --print-architecture)
mkdir -p "$root/DEBIAN" "$dist"
size=$(du -sk --apparent-size "$root" | cut -f 1)
sed -e "s|@VERSION@|$version|" -e "s|@ARCHITECTURE@|$architecture|" -e "s|@SIZE@|$size|" \
    -e "s|@PYTHON@|$minor|" -e "s|@MAINTAINER@|$maintainer|" debian/control.in >"$root/DEBIAN/control"
cp debian/conffiles "$root/DEBIAN/"
(cd "$root" && find . -path ./DEBIAN -prune -o -path ./etc -prune -o -type f -printf '%P\0' |
    sort -z | xargs -0 md5sum) >"$root/DEBIAN/md5sums"
chmod 0644 "$root/DEBIAN/"*
for script in preinst postinst prerm postrm; do
    install -m 0755 "debian/$script" "$root/DEBIAN/$script"
done
package=$dist/qwen-proxy_${version}_$architecture.deb
dpkg-deb --root-owner-group -Zxz "-z${LEVEL:-4}" --build "$root" "$package" >/dev/null
say "Built $package. Install it:"
say "  sudo apt-get install ./$package"
