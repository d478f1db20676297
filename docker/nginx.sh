#!/bin/sh
# In nginx's container (docker/compose.yaml): the shipped site, with TLS, for the proxy's container.
set -eu
cd "${SOURCES:-/qwen-proxy}"
. install/site.sh
# A line for each server. A dead one of several gets no calls for a while; a single one always does.
proxies=${PROXIES:-qwen-proxy:8080}
servers= options=max_fails=0
case $proxies in *,*) options='max_fails=1 fail_timeout=5s' ;; esac
for each in $(printf '%s' "$proxies" | tr ',' ' '); do
    servers="$servers    server $each $options;\\
"
done
servers=${servers%??}
# Of several servers each has its own sessions of the console: a browser stays with one of them.
sticky=
case $proxies in *,*)
    sticky="
s|^upstream qwen_proxy {|upstream qwen_proxy_console {\\n    ip_hash;\\n$servers\\n}\\n\\n&|
s|^    location / {|&\\n        location ^~ /console {\\n            proxy_pass http://qwen_proxy_console;\\n        }\\n|"
    ;;
esac
write_site "${NAME:-qwen-proxy}" /etc/nginx/tls/server.crt,/etc/nginx/tls/server.key / '' |
    sed "s|^    server unix:/run/qwen-proxy/http.sock.*|$servers|$sticky" \
        >"${SITE:-/etc/nginx/conf.d/default.conf}"
exec nginx -g 'daemon off;'
