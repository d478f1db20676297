#!/bin/sh
# In nginx's container (docker/compose.yaml): the shipped site, with TLS, for the proxy's container.
set -eu
cd "${SOURCES:-/qwen-proxy}"
. install/site.sh
write_site "${NAME:-qwen-proxy}" /etc/nginx/tls/server.crt,/etc/nginx/tls/server.key / '' |
    sed "s|server unix:/run/qwen-proxy/http.sock|server ${PROXY:-qwen-proxy:8080}|" \
        >"${SITE:-/etc/nginx/conf.d/default.conf}"
exec nginx -g 'daemon off;'
