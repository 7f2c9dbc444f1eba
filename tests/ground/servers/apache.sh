packages=apache2
folder=/etc/apache2
port=2533
boxes=none

version() { dpkg-query --show --showformat='${Version}' apache2; }

setup() {
    a2enmod --quiet proxy_http proxy_balancer lbmethod_byrequests proxy_hcheck headers alias reqtimeout
    a2dissite --quiet 000-default
    : >/etc/apache2/ports.conf
    cp "$CONFIGURATION" /etc/apache2/sites-enabled/registrar.conf
}

start() {
    install -d /run/apache2 /var/log/apache2
    apachectl start
}

stop() { apachectl stop; }
