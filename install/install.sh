#!/bin/sh
# `make install`: installs the proxy as a systemd service behind nginx. Run it again to upgrade.
#
#   PREFIX=/opt/qwen-proxy   where the virtual environment goes (PREFIX/venv)
#   DESTDIR=/some/where      put every file below it, as for a package: then nothing else of the
#                            system changes, and root is not needed
#   PYTHON=/usr/bin/python3  the Python for the virtual environment
#
# It starts nothing, and keeps the operator's changes: the environment file, an edited nginx site, a
# removed link in sites-enabled.
set -eu
umask 022

prefix=${PREFIX:-/opt/qwen-proxy}
root=${DESTDIR-}
user=qwen-proxy
unit=$root/etc/systemd/system/qwen-proxy.service
settings=$root/etc/qwen-proxy/qwen-proxy.env
site=$root/etc/nginx/sites-available/qwen-proxy.conf
link=$root/etc/nginx/sites-enabled/qwen-proxy.conf
# The site as it was installed last time, to detect the operator's edits.
pristine=$root$prefix/nginx-site.installed

say() { printf '%s\n' "$*"; }
fail() {
    printf 'qwen-proxy: %s\n' "$@" >&2
    exit 1
}

cd "$(dirname "$0")/.."
case $prefix in
/?*) ;;
*) fail "PREFIX must be an absolute path, not '$prefix'." ;;
esac
case $prefix in
*[!A-Za-z0-9/._+-]*) fail "PREFIX may contain only letters, digits and / . _ + -, not '$prefix'." ;;
esac
if [ -z "$root" ]; then
    [ "$(id -u)" = 0 ] || fail "installing needs root: sudo make install"
    command -v systemctl >/dev/null 2>&1 || fail \
        "systemd is missing. Install it: sudo apt-get install systemd" \
        "or run the proxy without it: make run"
    python=$(sh install/python.sh --system)
else
    python=$(sh install/python.sh)
fi

# --- the program -------------------------------------------------------------------------------

upgrade=
[ ! -e "$unit" ] || upgrade=1
venv=$root$prefix/venv
say "Installing into $venv with $("$python" -V) ..."
mkdir -p "$root$prefix"
made_by=$("$python" -c 'import sys; print(sys.version, sys.base_prefix)')
if [ "$(cat "$venv/qwen-proxy-python" 2>/dev/null)" != "$made_by" ] ||
    ! "$venv/bin/python" -c 'import pip' 2>/dev/null; then
    rm -rf "$venv"
    "$python" -m venv "$venv"
    printf '%s\n' "$made_by" >"$venv/qwen-proxy-python"
fi

# Built from a copy, so that a build as root leaves no file of root in the checkout.
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
for item in setup.py setup.cfg pyproject.toml README.md LICENSE gunicorn.conf.py wsgi.py qwen_wsgi \
    install; do
    [ ! -e "$item" ] || cp -R "$item" "$build/"
done
# The copy has no git: it gets the version as a file.
"$venv/bin/python" -B install/version.py "$build/qwen_wsgi/_version.py"
pip() {
    PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore "$venv/bin/python" -m pip "$@"
}
# setuptools is installed into the environment, so that an upgrade with unchanged dependencies needs
# no network.
if ! { pip install --quiet 'setuptools >= 70.1' &&
    pip install --quiet --no-build-isolation "$build[pdf]"; }; then
    fail "pip could not install the packages (see its message above); it needs PyPI or a mirror." \
        "nothing else was changed."
fi

# --- user, settings, unit ----------------------------------------------------------------------

has_nginx=
if [ -n "$root" ] || command -v nginx >/dev/null 2>&1; then
    has_nginx=1
fi
if [ -z "$root" ]; then
    getent group "$user" >/dev/null || groupadd --system "$user"
    getent passwd "$user" >/dev/null || useradd --system --gid "$user" --no-create-home \
        --home-dir /var/lib/qwen-proxy --shell /usr/sbin/nologin "$user"
    if [ -n "$has_nginx" ]; then
        # The socket is for its group, so nginx's workers must be in it.
        web=$(awk '$1 == "user" { sub(";", "", $2); print $2; exit }' /etc/nginx/nginx.conf) || web=
        web=${web:-www-data}
        if getent passwd "$web" >/dev/null; then
            usermod --append --groups "$user" "$web"
        fi
    fi
fi

mkdir -p "$root/etc/qwen-proxy" "$root/etc/systemd/system"
if [ -e "$settings" ]; then
    say "Kept $settings"
else
    # For root only: systemd reads it as root, and nginx is in the service's group.
    install -m 0600 systemd/qwen-proxy.env.example "$settings"
fi
install -m 0644 systemd/qwen-proxy.env.example "$root/etc/qwen-proxy/qwen-proxy.env.example"
install -m 0644 systemd/owner.conf.example "$root/etc/qwen-proxy/owner.conf.example"
sed "s|/opt/qwen-proxy/|$prefix/|g" systemd/qwen-proxy.service >"$build/unit"
install -m 0644 "$build/unit" "$unit"
if [ -z "$root" ] && [ -d /run/systemd/system ]; then
    systemctl daemon-reload
fi

# --- nginx -------------------------------------------------------------------------------------

nginx_reload=
failed=
if [ -z "$has_nginx" ]; then
    say "nginx is not installed, so no site was installed. To add it:"
    say "  sudo apt-get install nginx-light && sudo make install"
else
    mkdir -p "$(dirname "$site")" "$(dirname "$link")"
    if [ ! -e "$site" ]; then
        install -m 0644 nginx/qwen-proxy.conf "$site"
        ln -sf ../sites-available/qwen-proxy.conf "$link"
        nginx_reload=1
        linked=1
    elif cmp -s nginx/qwen-proxy.conf "$site"; then
        rm -f "$site.new"
    elif cmp -s "$pristine" "$site"; then
        install -m 0644 nginx/qwen-proxy.conf "$site"
        rm -f "$site.new"
        nginx_reload=1
    else
        install -m 0644 nginx/qwen-proxy.conf "$site.new"
        say "Kept $site, which was edited; the new version is $site.new"
    fi
    install -m 0644 nginx/qwen-proxy.conf "$pristine"
    if [ -z "$root" ] && [ -n "$nginx_reload" ] && ! nginx -t -q; then
        failed=1
        nginx_reload=
        say "nginx rejects its configuration (see above)."
        if [ -n "${linked-}" ]; then
            # With it nginx would not start at the next boot.
            rm -f "$link"
            say "The site was not enabled. Correct the configuration, then:"
            say "  sudo ln -s ../sites-available/qwen-proxy.conf $link && sudo nginx -t"
        fi
    fi
fi

# --- next steps --------------------------------------------------------------------------------

say
if [ -n "$upgrade" ]; then
    say "Upgraded. To run the new version (open streams may finish for up to a minute):"
    say "  sudo systemctl restart qwen-proxy"
else
    say "Installed; nothing was started. Next:"
    say "  1. Add a Qwen API key, and client keys for the LAN, to /etc/qwen-proxy/qwen-proxy.env"
    say "     (or share your ~/.qwen: /etc/qwen-proxy/owner.conf.example)."
    say "  2. sudo systemctl enable --now qwen-proxy"
    say "  3. sudo journalctl -u qwen-proxy -f"
fi
if [ -n "$nginx_reload" ]; then
    say "nginx has a new site:"
    say "  sudo systemctl reload nginx"
    if [ -e "$root/etc/nginx/sites-enabled/default" ]; then
        say "Debian's default site takes precedence on port 80. To disable it:"
        say "  sudo rm /etc/nginx/sites-enabled/default"
    fi
fi
[ -z "$failed" ]
