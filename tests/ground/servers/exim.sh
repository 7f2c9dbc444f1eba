packages=exim4-daemon-light
folder=/etc/exim4
port=2511
boxes=/var/mail

version() { dpkg-query --show --showformat='${Version}' exim4-daemon-light; }

ours() { sed -i "s/^\($1\)=.*/\1='$2'/" /etc/exim4/update-exim4.conf.conf; }

setup() {
    ours dc_eximconfig_configtype internet
    ours dc_local_interfaces "127.0.0.1.$port"
    ours dc_other_hostnames ground.example
    echo "MAIN_RELAY_NETS = 192.0.2.1" >/etc/exim4/exim4.conf.localmacros
}

start() {
    update-exim4.conf
    install -d -o Debian-exim -g Debian-exim /run/exim4
    exim4 -bd -q1m
}

stop() { kill "$(cat /run/exim4/exim.pid)"; }  # the daemon: what it has begun goes on

refuse_elsewhere() { :; }
accept_elsewhere() { ours dc_other_hostnames "ground.example:elsewhere.example"; }
check_senders() { echo "CHECK_RCPT_VERIFY_SENDER = yes" >>/etc/exim4/exim4.conf.localmacros; }
refuse_unknown() { :; }
