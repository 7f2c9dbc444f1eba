packages=haproxy
folder=/etc/haproxy
port=2532
boxes=none

version() { dpkg-query --show --showformat='${Version}' haproxy; }
setup() { cp "$CONFIGURATION" /etc/haproxy/registrar.cfg; }
start() { haproxy -D -f /etc/haproxy/registrar.cfg; }
stop() { pkill -x haproxy; }
