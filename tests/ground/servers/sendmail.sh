packages="sendmail-bin sensible-mda procmail"
folder=/etc/mail
port=2513
boxes=/var/mail

version() { dpkg-query --show --showformat='${Version}' sendmail-bin; }

setup() {
    cd /etc/mail
    sed -i "s/Port=smtp, Addr=127.0.0.1/Port=$port, Addr=127.0.0.1/" sendmail.mc
    echo ground.example >>local-host-names
    sed -i '/^\(ClientRate\|ClientConn\|GreetPause\):\(127\|IPv6\)/d' access  # loopback has no limits there
    makemap hash access <access
    m4 sendmail.mc >sendmail.cf
    newaliases
}

start() { sendmail-mta -bd -q1m; }
stop() { pkill --oldest --exact sendmail-mta; }  # the daemon: what it has begun goes on

# Its rules trust loopback, and itself by whatever name: nobody is trusted any more.
refuse_elsewhere() { sed -i '/^SRelay_ok/a R$*\t\t\t$@ NO' /etc/mail/sendmail.cf; }
accept_elsewhere() { echo elsewhere.example >>/etc/mail/local-host-names; }
check_senders() { :; }  # by default
refuse_unknown() { :; }
