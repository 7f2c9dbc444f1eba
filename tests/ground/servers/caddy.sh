packages=caddy
folder=/etc/caddy
port=2535
boxes=none

version() { dpkg-query --show --showformat='${Version}' caddy; }
setup() { cp "$CONFIGURATION" /etc/caddy/registrar; }
start() { HOME=/run caddy start --config /etc/caddy/registrar --adapter caddyfile; }
stop() { pkill -x caddy; }
