#!/bin/sh
# `make install`: installs the proxy as a systemd service behind nginx. Run it again to upgrade.
#
#   NAME=qwen.lan            the host name that clients use
#   TLS=internal             https with a certificate of this machine's own authority, made here
#   TLS=/path/cert,/path/key https with this certificate (with its chain) and key
#   TLS=off                  http again
#   PREFIX=/opt/qwen-proxy   where the virtual environment goes (PREFIX/venv)
#   DESTDIR=/some/where      put every file below it, as for a package: then nothing else of the
#                            system changes, root is not needed, and the tree works when its content
#                            is moved to /
#   PYTHON=/usr/bin/python3  the Python for the virtual environment
#   UPGRADE=0                keep the dependencies, and pip, as far as setup.cfg allows what is there
#
# NAME and TLS are remembered (/etc/qwen-proxy/site). It starts nothing, and keeps the operator's
# changes: the environment file, an edited nginx site, a removed link in sites-enabled.
set -eu
umask 022

prefix=${PREFIX:-/opt/qwen-proxy}
root=${DESTDIR-}
user=qwen-proxy
readers=qwen-proxy-env
unit=$root/etc/systemd/system/qwen-proxy.service
command=$root/usr/local/bin/qwen-proxy
settings=$root/etc/qwen-proxy/qwen-proxy.env
chosen=$root/etc/qwen-proxy/site
tls_files=/etc/qwen-proxy/tls
site=$root/etc/nginx/sites-available/qwen-proxy.conf
link=$root/etc/nginx/sites-enabled/qwen-proxy.conf
# The site as it was installed last time, to detect the operator's edits.
pristine=$root$prefix/nginx-site.installed

say() { printf '%s\n' "$*"; }
fail() {
    printf 'qwen-proxy: %s\n' "$@" >&2
    exit 1
}
# A value that was chosen before.
remembered() { [ ! -r "$chosen" ] || sed -n "/^$1=/{s///p;q}" "$chosen"; }

cd "$(dirname "$0")/.."
. install/site.sh
case $prefix in
/?*) ;;
*) fail "PREFIX must be an absolute path, not '$prefix'." ;;
esac
case $prefix in
*[!A-Za-z0-9/._+-]*) fail "PREFIX may contain only letters, digits and / . _ + -, not '$prefix'." ;;
esac
case ${UPGRADE-} in
'' | 0 | 1) ;;
*) fail "UPGRADE must be 0 (keep the dependencies) or 1, not '$UPGRADE'." ;;
esac
name=${NAME:-$(remembered NAME)}
tls=${TLS:-$(remembered TLS)}
tls=${tls:-off}
check_address "$name" "$tls"
if [ -z "$root" ]; then
    [ "$(id -u)" = 0 ] || fail "installing needs root: sudo make install"
    command -v systemctl >/dev/null 2>&1 || fail \
        "systemd is missing. Install it: sudo apt-get install systemd" \
        "or run the proxy without it: make run"
    python=$(sh install/python.sh --system)
elif ! python=$(sh install/python.sh --system 2>/dev/null); then
    python=$(sh install/python.sh)
    say "Note: the installed tree needs $python at the same place of its machine, and it is in a"
    say "directory that a service usually cannot read. PYTHON=/usr/bin/python3 names another one."
fi
if [ "$tls" = internal ]; then
    command -v openssl >/dev/null 2>&1 || fail \
        "TLS=internal makes certificates with openssl: sudo apt-get install openssl"
fi

# --- the program -------------------------------------------------------------------------------

upgrade=
[ ! -e "$unit" ] || upgrade=1
venv=$root$prefix/venv
mkdir -p "$root$prefix"
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
. install/program.sh

# --- user, settings, unit, command ---------------------------------------------------------------

has_nginx=
if [ -n "$root" ] || command -v nginx >/dev/null 2>&1; then
    has_nginx=1
fi
if [ -z "$root" ]; then
    for group in "$user" "$readers"; do
        getent group "$group" >/dev/null || groupadd --system "$group"
    done
    getent passwd "$user" >/dev/null || useradd --system --gid "$user" --no-create-home \
        --home-dir /var/lib/qwen-proxy --shell /usr/sbin/nologin "$user"
    # The tools are another user: it can read nothing of the server's.
    getent passwd "$user-tools" >/dev/null || useradd --system --user-group --no-create-home \
        --home-dir /nonexistent --shell /usr/sbin/nologin "$user-tools"
    if [ -n "$has_nginx" ]; then
        # The socket is for its group, so nginx's workers must be in it.
        web=$(awk '$1 == "user" { sub(";", "", $2); print $2; exit }' /etc/nginx/nginx.conf) || web=
        web=${web:-www-data}
        if getent passwd "$web" >/dev/null; then
            usermod --append --groups "$user" "$web"
        fi
    fi
fi

mkdir -p "$root/etc/qwen-proxy" "$(dirname "$unit")" "$(dirname "$command")"
if [ -e "$settings" ]; then
    say "Kept $settings"
else
    install -m 0600 systemd/qwen-proxy.env.example "$settings"
fi
if [ -z "$root" ]; then
    # The service reads it itself, through a group of its own: nginx is in the service's other group.
    chgrp "$readers" "$settings"
    chmod 0640 "$settings"
fi
install -m 0644 systemd/qwen-proxy.env.example "$root/etc/qwen-proxy/qwen-proxy.env.example"
install -m 0644 systemd/owner.conf.example "$root/etc/qwen-proxy/owner.conf.example"
url=$(address "$name" "$tls")
sed -e "s|/opt/qwen-proxy/|$prefix/|g" \
    -e "${url:+s|^#\(Environment=QWEN_PROXY_PUBLIC_URL=\)|\1$url|}" \
    systemd/qwen-proxy.service >"$build/unit"
install -m 0644 "$build/unit" "$unit"
# Not switched on: an installation that listens elsewhere would not be reached any more.
install -m 0644 systemd/qwen-proxy.socket "${unit%.service}.socket"
# The same of the tools that the server can run: they are used where their socket is.
sed "s|/opt/qwen-proxy/|$prefix/|g" systemd/qwen-proxy-tools.service >"$build/tools"
install -m 0644 "$build/tools" "${unit%.service}-tools.service"
install -m 0644 systemd/qwen-proxy-tools.socket "${unit%.service}-tools.socket"
sed "s|/opt/qwen-proxy/|$prefix/|g" systemd/qwen-proxy.command >"$build/command"
if [ -e "$command" ] && ! grep -q 'installed by `make install`' "$command"; then
    say "Kept $command, which is another program; ours is: $prefix/venv/bin/qwen-proxy"
else
    install -m 0755 "$build/command" "$command"
fi
# The man page, and what shells complete: ours, and links where `man` and shells look.
(cd share && find . -type f) | while read -r file; do
    file=${file#./}
    install -D -m 0644 "share/$file" "$root$prefix/share/$file"
    found=$root/usr/local/share/$file
    if [ ! -e "$found" ] || [ -L "$found" ]; then
        mkdir -p "$(dirname "$found")"
        ln -sf "$prefix/share/$file" "$found"
    fi
done
if [ -n "$name" ]; then
    printf '# How clients reach this machine: written by `make install NAME=… TLS=…`.\n' >"$chosen"
    printf 'NAME=%s\nTLS=%s\n' "$name" "$tls" >>"$chosen"
fi
if [ -z "$root" ] && [ -d /run/systemd/system ]; then
    systemctl daemon-reload
fi

# --- nginx -------------------------------------------------------------------------------------

nginx_reload=
failed=
if [ "$tls" = internal ]; then
    # shellcheck disable=SC2046  # words of a list
    made=$(sh install/tls.sh "$root$tls_files" $(server_names "$name" "$root" addresses))
    [ -z "$made" ] || nginx_reload=1
fi
if [ -z "$has_nginx" ]; then
    nginx_reload=
    say "nginx is not installed, so no site was installed. To add it:"
    say "  sudo apt-get install nginx-light && sudo make install"
else
    mkdir -p "$(dirname "$site")" "$(dirname "$link")"
    fresh=$build/site
    write_site "$name" "$tls" "$root" "$tls_files" >"$fresh"
    if [ ! -e "$site" ]; then
        install -m 0644 "$fresh" "$site"
        ln -sf ../sites-available/qwen-proxy.conf "$link"
        nginx_reload=1
        linked=1
    elif cmp -s "$fresh" "$site"; then
        rm -f "$site.new"
    elif cmp -s "$pristine" "$site"; then
        install -m 0644 "$fresh" "$site"
        rm -f "$site.new"
        nginx_reload=1
    else
        install -m 0644 "$fresh" "$site.new"
        say "Kept $site, which was edited; the new version is $site.new"
    fi
    install -m 0644 "$fresh" "$pristine"
    if [ ! -e "$link" ] && [ ! -L "$link" ]; then
        nginx_reload=
        say "The site is switched off. To switch it on:"
        say "  sudo ln -s ../sites-available/qwen-proxy.conf /etc/nginx/sites-enabled/"
        say "  sudo nginx -t && sudo systemctl reload nginx"
    fi
    if [ -z "$root" ] && [ -n "$nginx_reload" ] && ! nginx -t -q; then
        failed=1
        nginx_reload=
        say "nginx rejects its configuration (see above)."
        if [ -n "${linked-}" ]; then
            # With it nginx would not start at the next boot.
            rm -f "$link"
            say "The site was not switched on. Correct the configuration, then:"
            say "  sudo ln -s ../sites-available/qwen-proxy.conf $link && sudo nginx -t"
        fi
    fi
fi

# --- next steps --------------------------------------------------------------------------------

say
if [ -n "$upgrade" ]; then
    say "Upgraded. To run the new version (open streams may finish for up to a minute, and new calls"
    say "wait meanwhile if qwen-proxy.socket is used: docs/operations.md):"
    say "  sudo systemctl restart qwen-proxy"
else
    say "Installed; nothing was started. Next:"
    say "  1. Add a Qwen API key, and client keys for the LAN, to /etc/qwen-proxy/qwen-proxy.env"
    say "     (or share your ~/.qwen: /etc/qwen-proxy/owner.conf.example)."
    say "  2. sudo systemctl enable --now qwen-proxy"
    say "  3. sudo qwen-proxy doctor"
fi
if [ -n "$nginx_reload" ]; then
    say "nginx has a new site or certificate:"
    say "  sudo systemctl reload nginx"
fi
if [ -n "$has_nginx" ] && [ -z "$failed" ] && [ -L "$link" ]; then
    say "Then, on this machine:"
    say "  $(curl_line "$name" "$tls" "$tls_files")"
    say "  qwen-proxy clients            # the setup of each client"
    if [ "$tls" = off ] && [ -e "$root/etc/nginx/sites-enabled/default" ]; then
        say "On port 80 Debian's default site answers for this machine's address, ours for its names."
        say "To let ours answer for the address, too:"
        say "  sudo rm /etc/nginx/sites-enabled/default && sudo systemctl reload nginx"
    fi
fi
[ "$tls" != internal ] || trust_lines "$name" "$tls_files/ca.crt"
[ -z "$failed" ]
