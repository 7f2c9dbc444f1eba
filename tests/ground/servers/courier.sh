packages=courier-mta
folder=/etc/courier
port=2514
boxes=/var/home

version() { dpkg-query --show --showformat='${Version}' courier-mta; }

setup() {
    cd /etc/courier
    sed -i "s/^ADDRESS=.*/ADDRESS=127.0.0.1/; s/^PORT=.*/PORT=$port/" esmtpd
    echo ./Maildir >defaultdelivery
    echo mail.ground.example >me
    at_home ground.example
}

at_home() {
    local domain
    for domain in "$@"; do
        echo "$domain"
    done | tee /etc/courier/locals >/etc/courier/esmtpacceptmailfor
    makeacceptmailfor
}

start() {
    authdaemond start
    courier start
    esmtpd start
}

stop() {
    esmtpd stop
    courier stop
}

refuse_elsewhere() {
    cd /etc/courier
    sed -i '/RELAYCLIENT/d' smtpaccess/default
    makesmtpaccess
}
accept_elsewhere() { at_home ground.example elsewhere.example; }
refuse_unknown() { :; }
