packages=postfix
folder=/etc/postfix
port=2510
boxes=/var/mail

version() { dpkg-query --show --showformat='${Version}' postfix; }

setup() {
    postconf -e "mydestination = ground.example" "mynetworks = 192.0.2.1" "maillog_file = /var/log/mail.log"
    sed -i "s/^smtp  *inet/127.0.0.1:$port inet/" /etc/postfix/master.cf
}

start() {
    /usr/lib/postfix/configure-instance.sh -  # the names' server, into its chroot
    postfix start
}

stop() { postfix stop; }

# Debian's own smtpd_relay_restrictions defer it.
refuse_elsewhere() { :; }
accept_elsewhere() { postconf -e "mydestination = ground.example, elsewhere.example"; }
check_senders() { postconf -e "smtpd_sender_restrictions = reject_unknown_sender_domain"; }
defer_elsewhere() { :; }
refuse_unknown() { :; }
