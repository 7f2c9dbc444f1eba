packages=haproxy
folder=/etc/haproxy
port=2521
boxes=none

version() { dpkg-query --show --showformat='${Version}' haproxy; }

setup() {
    cat >/etc/haproxy/haproxy.cfg <<END
global
    daemon
defaults
    mode tcp
    timeout connect 2s
    timeout client 1h
    timeout server 1h
    timeout check 1s
    default-server check inter 200ms rise 1 fall 2 on-marked-down shutdown-sessions
listen service
    bind 127.0.0.1:$port
    server first 127.0.0.1:$FIRST
    server second 127.0.0.1:$SECOND backup
END
}

start() { haproxy -f /etc/haproxy/haproxy.cfg; }
stop() { pkill -x haproxy; }
