packages=varnish
folder=/etc/varnish
port=2534
boxes=none

version() { dpkg-query --show --showformat='${Version}' varnish; }
setup() { cp "$CONFIGURATION" /etc/varnish/registrar.vcl; }
start() { varnishd -a ":$port" -f /etc/varnish/registrar.vcl -p backend_idle_timeout=10 -n /run/varnish -s default,32m; }
stop() { pkill -o -x varnishd; }
