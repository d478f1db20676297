#!/bin/sh
# Make a certificate authority of this machine, and a certificate of it for the nginx site.
#
#   install/tls.sh DIRECTORY NAME...    host names and IPv4 addresses, the most important one first
#
# Makes ca.crt, ca.key, server.crt and server.key in DIRECTORY. What is there and still good is kept:
# the authority until two years before its end, because clients trust it; the certificate while it
# has these names and is good for another 90 days. Prints "new" if it made a certificate.
#
# Days: devices of Apple accept no certificate for longer than 825 days, also of one's own authority.
set -eu
umask 077
directory=$1
shift
name=$1

ca_days=7300
ca_least_s=63072000
days=820
least_s=7776000

if ! command -v openssl >/dev/null 2>&1; then
    echo "qwen-proxy: TLS=internal needs openssl: sudo apt-get install openssl" >&2
    exit 1
fi
mkdir -p "$directory"
chmod 755 "$directory"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

names=
for each; do
    case $each in
    *[!0-9.]*) names=$names${names:+,}DNS:$each ;;
    *) names=$names${names:+,}IP:$each ;;
    esac
done
cat >"$work/conf" <<END
[req]
distinguished_name = dn
prompt = no
string_mask = utf8only
[dn]
CN = \${ENV::COMMON_NAME}
[authority]
basicConstraints = critical, CA:TRUE, pathlen:0
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[server]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = $names
END

good_for() { openssl x509 -in "$1" -noout -checkend "$2" >/dev/null 2>&1; }
quiet() {
    "$@" 2>"$work/err" || {
        cat "$work/err" >&2
        exit 1
    }
}

cd "$directory"
if [ ! -s ca.key ] || ! good_for ca.crt "$ca_least_s"; then
    COMMON_NAME=$(printf %.64s "qwen-proxy on $name")
    export COMMON_NAME
    quiet openssl ecparam -name prime256v1 -genkey -noout -out "$work/ca.key"
    quiet openssl req -x509 -new -sha256 -config "$work/conf" -extensions authority \
        -key "$work/ca.key" -days "$ca_days" -out "$work/ca.crt"
    mv "$work/ca.key" ca.key
    mv "$work/ca.crt" ca.crt
    chmod 644 ca.crt
    rm -f server.crt
fi
if [ -s server.key ] && good_for server.crt "$least_s" &&
    [ "$(cat server.names 2>/dev/null)" = "$names" ]; then
    exit 0
fi
# The common name is only shown; it may have 64 characters.
COMMON_NAME=$(printf %.64s "$name")
export COMMON_NAME
quiet openssl ecparam -name prime256v1 -genkey -noout -out "$work/server.key"
quiet openssl req -new -sha256 -config "$work/conf" -key "$work/server.key" -out "$work/csr"
quiet openssl x509 -req -sha256 -in "$work/csr" -CA ca.crt -CAkey ca.key -days "$days" \
    -set_serial "0x1$(openssl rand -hex 15)" -extfile "$work/conf" -extensions server \
    -out "$work/server.crt"
mv "$work/server.key" server.key
mv "$work/server.crt" server.crt
printf '%s\n' "$names" >server.names
chmod 644 server.crt server.names
echo new
