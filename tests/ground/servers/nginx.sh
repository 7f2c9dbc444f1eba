packages=nginx
folder=/etc/nginx
port=2531
boxes=none

version() { dpkg-query --show --showformat='${Version}' nginx; }
setup() { cp "$CONFIGURATION" /etc/nginx/registrar.conf; }
start() { setsid nginx -c /etc/nginx/registrar.conf & }
stop() { pkill -QUIT -o -x nginx; }
