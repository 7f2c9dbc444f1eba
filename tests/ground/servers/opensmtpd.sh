packages=opensmtpd
folder=/etc/smtpd.conf
port=2512
boxes=/var/home

version() { dpkg-query --show --showformat='${Version}' opensmtpd; }

# Debian's configuration but for the port, and for clients on loopback, who may relay there.
configuration() {
    cat >/etc/smtpd.conf <<END
table aliases file:/etc/aliases
listen on 127.0.0.1 port $port
action "local" maildir alias <aliases>
match from any for domain { $* } action "local"
END
}

setup() {
    touch /etc/aliases
    configuration ground.example
}

start() { smtpd; }
stop() { pkill -x smtpd; }

refuse_elsewhere() { :; }
accept_elsewhere() { configuration ground.example, elsewhere.example; }
refuse_unknown() { :; }
