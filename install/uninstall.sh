#!/bin/sh
# `make uninstall`: removes what `make install` installed. Takes the same PREFIX and DESTDIR.
#
# Settings, state, an edited nginx site and the user are kept; PURGE=1 removes them, too.
set -eu

prefix=${PREFIX:-/opt/qwen-proxy}
root=${DESTDIR-}
user=qwen-proxy
site=$root/etc/nginx/sites-available/qwen-proxy.conf
pristine=$root$prefix/nginx-site.installed

say() { printf '%s\n' "$*"; }

case $prefix in
/?*) ;;
*)
    say "qwen-proxy: PREFIX must be an absolute path, not '$prefix'." >&2
    exit 1
    ;;
esac
if [ -z "$root" ]; then
    if [ "$(id -u)" != 0 ]; then
        say "qwen-proxy: uninstalling needs root: sudo make uninstall" >&2
        exit 1
    fi
    if [ -d /run/systemd/system ]; then
        systemctl disable --now qwen-proxy.socket qwen-proxy.service \
            qwen-proxy-tools.socket qwen-proxy-tools.service 2>/dev/null || true
    fi
fi

for unit in qwen-proxy qwen-proxy-tools; do
    rm -f "$root/etc/systemd/system/$unit.service" "$root/etc/systemd/system/$unit.socket"
done
if grep -qs 'installed by `make install`' "$root/usr/local/bin/qwen-proxy"; then
    rm -f "$root/usr/local/bin/qwen-proxy"
fi
if [ -z "$root" ] && [ -d /run/systemd/system ]; then
    systemctl daemon-reload
fi

if [ -z "$root" ] && [ -L /etc/nginx/sites-enabled/qwen-proxy.conf ]; then
    say "nginx serves the site until you run: sudo systemctl reload nginx"
fi
rm -f "$root/etc/nginx/sites-enabled/qwen-proxy.conf" "$site.new"
if [ -e "$site" ] && [ "${PURGE-}" != 1 ] && ! cmp -s "$pristine" "$site"; then
    say "Kept $site, which was edited (it is disabled)."
else
    rm -f "$site"
fi

# Only if it is certainly ours: a wrong PREFIX must not delete another directory.
if [ -e "$root$prefix/venv/qwen-proxy-python" ]; then
    rm -rf "$root$prefix/venv"
fi
for file in man/man1/qwen-proxy.1 bash-completion/completions/qwen-proxy \
    zsh/site-functions/_qwen-proxy fish/vendor_completions.d/qwen-proxy.fish; do
    found=$root/usr/local/share/$file
    if [ "$(readlink "$found")" = "$prefix/share/$file" ]; then
        rm -f "$found"
    fi
    rm -f "$root$prefix/share/$file"
done
find "$root$prefix/share" -depth -type d -empty -delete 2>/dev/null || true
rm -f "$pristine"
rmdir "$root$prefix" 2>/dev/null || true
rm -f "$root/etc/qwen-proxy/qwen-proxy.env.example" "$root/etc/qwen-proxy/owner.conf.example"

if [ "${PURGE-}" = 1 ]; then
    rm -rf "$root/etc/qwen-proxy" "$root/etc/systemd/system/qwen-proxy.service.d" \
        "$root/etc/systemd/system/qwen-proxy.socket.d" \
        "$root/etc/systemd/system/qwen-proxy-tools.service.d" \
        "$root/var/lib/qwen-proxy"
    if [ -z "$root" ]; then
        # userdel warns that nginx's user is still in the group, which is removed next.
        if getent passwd "$user" >/dev/null; then
            userdel "$user" 2>/dev/null ||
                say "The user $user could not be removed; does a process of it run?"
        fi
        if getent passwd "$user-tools" >/dev/null; then
            userdel "$user-tools" 2>/dev/null ||
                say "The user $user-tools could not be removed; does a process of it run?"
        fi
        if ! getent passwd "$user" >/dev/null; then
            for group in "$user" qwen-proxy-env; do
                ! getent group "$group" >/dev/null || groupdel "$group"
            done
        fi
    fi
    say "Removed, including settings, state and user."
else
    rmdir "$root/etc/qwen-proxy" 2>/dev/null || true
    say "Removed. Kept: /etc/qwen-proxy, /var/lib/qwen-proxy and the user $user" \
        "(PURGE=1 removes them)."
fi
