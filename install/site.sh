# The address of the nginx site and its certificate; read by install.sh.

# Refuse a NAME or TLS that cannot work.
check_address() {
    case $1 in
    '') [ "$2" = off ] || fail "TLS needs the name that clients use: make install NAME=qwen.lan TLS=…" ;;
    -* | .* | *. | *..* | *[!A-Za-z0-9.-]*)
        fail "NAME must be a host name or an IPv4 address, not '$1'."
        ;;
    esac
    case $2 in
    off | internal) ;;
    *[!A-Za-z0-9/._+,-]*)
        fail "the paths in TLS may contain only letters, digits and / . _ + -, not '$2'."
        ;;
    /?*,/?*)
        [ "${2#*,*,}" = "$2" ] || fail "TLS takes two paths, not '$2'."
        for file in "${2%,*}" "${2#*,}"; do
            [ -n "$root" ] || [ -r "$file" ] || fail "TLS: $file cannot be read."
        done
        ;;
    *) fail "TLS must be internal, /path/to/certificate,/path/to/key or off, not '$2'." ;;
    esac
}

# The address that clients use, or nothing.
address() {
    [ -z "$1" ] || case $2 in
    off) printf 'http://%s\n' "$1" ;;
    *) printf 'https://%s\n' "$1" ;;
    esac
}

# The names of this machine, and with `addresses` also where it is in the LAN now.
server_names() {
    found="$1 localhost"
    if [ -z "$2" ]; then
        # `hostname -f` fails where nothing resolves the machine's own name.
        for option in '' -f ${3:+-I}; do
            # shellcheck disable=SC2086  # nothing, or one option
            found="$found $(hostname $option 2>/dev/null || true)"
        done
    fi
    [ -z "${3-}" ] || found="$found 127.0.0.1"
    seen=' '
    for each in $found; do
        case $each in *[!A-Za-z0-9.-]*) continue ;; esac # an IPv6 address, or no name at all
        case $seen in *" $each "*) continue ;; esac
        seen="$seen$each "
        printf '%s\n' "$each"
    done
}

# The site, for this name and certificate.
write_site() {
    case $3 in
    '') names="qwen-proxy $(server_names "$1" '' | tr '\n' ' ')" ;;
    *) names="qwen-proxy $(server_names "$1" "$3" | tr '\n' ' ')" ;;
    esac
    names=$(printf '%s' "$names" | sed 's/ *$//')
    certificate=$4/server.crt key=$4/server.key
    case $2 in
    /*) certificate=${2%,*} key=${2#*,} ;;
    esac
    if [ "$2" = off ]; then
        sed "s|^    server_name .*;|    server_name $names;|" nginx/qwen-proxy.conf
    else
        sed -e "s|^    server_name .*;|    server_name $names;|" \
            -e '/^    listen .*80;$/d' \
            -e 's|^    #\(listen .*443 ssl;\)|    \1|' \
            -e 's|^    #\(ssl_\)|    \1|' \
            -e "s|^\(    ssl_certificate  *\)/.*;|\1$certificate;|" \
            -e "s|^\(    ssl_certificate_key  *\)/.*;|\1$key;|" \
            nginx/qwen-proxy.conf
    fi
}

# A command that shows whether it works, for this machine itself.
curl_line() {
    case $2 in
    off) printf 'curl http://localhost/health\n' ;;
    internal)
        printf 'curl --cacert %s/ca.crt --resolve %s:443:127.0.0.1 https://%s/health\n' "$3" "$1" "$1"
        ;;
    *) printf 'curl --resolve %s:443:127.0.0.1 https://%s/health\n' "$1" "$1" ;;
    esac
}

# What a client needs to trust our own authority.
trust_lines() {
    cat <<END

The certificate is of this machine's own authority, which clients do not know yet. Give each of them
$2 (it is public; ca.key beside it is not), and have the name
$1 lead to this machine: in your router's DNS, or in the client's /etc/hosts.

  Debian, Ubuntu  sudo cp ca.crt /usr/local/share/ca-certificates/qwen-proxy.crt
                  sudo update-ca-certificates
  macOS           sudo security add-trusted-cert -d -r trustRoot \\
                      -k /Library/Keychains/System.keychain ca.crt
  Windows         certutil -addstore -f Root ca.crt        (as administrator)
  curl            curl --cacert ca.crt https://$1/health
  Python (openai, anthropic, aider, LangChain), on Debian after the lines above:
                  export SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
                  export REQUESTS_CA_BUNDLE=/etc/ssl/certs/ca-certificates.crt
  Node (Claude Code, opencode, Qwen Code, Cline, the SDKs)
                  export NODE_EXTRA_CA_CERTS=/path/to/ca.crt
  Codex           export CODEX_CA_CERTIFICATE=/path/to/ca.crt
  Firefox         Settings, Certificates, Authorities, Import
END
}

# Take the staging directory out of what was installed below it, so that it works when it is moved.
forget_staging() {
    # In scripts and their first lines, and in pyvenv.cfg.
    grep -IlrF "$1$2/" "$3/bin" "$3/pyvenv.cfg" >"$build/staged" || true
    pattern=$(printf '%s' "$1" | sed 's/[][\.*^$|]/\\&/g')
    while IFS= read -r file; do
        sed "s|$pattern$2/|$2/|g" "$file" >"$build/moved"
        cat "$build/moved" >"$file" # it keeps its mode
    done <"$build/staged"
    # In compiled code, which names its source in tracebacks.
    find "$3/lib" -name __pycache__ -type d -prune -exec rm -rf {} +
    "$3/bin/python" -B -m compileall -q -s "$1" -p / "$3/lib" >/dev/null || true
}
