. "$here/npm.sh"

packages=
folder=
port=2516
boxes=/var/mail

version() { echo 3.3.4; }

fetch() { from_npm "Haraka@$(version)"; }

setup() {
    rm -rf /etc/haraka
    mkdir -p /etc/haraka
    cp -r "$directory/npm/Haraka/node_modules/Haraka/config" /etc/haraka/
    cd /etc/haraka/config
    printf '%s\n' rcpt_to.in_host_list queue/test >plugins  # which keeps each mail in a file
    echo ground.example >host_list
    echo mail.ground.example >me
    printf "%s\n" "listen=127.0.0.1:$port" nodes=0 >smtp.ini
    echo "level=warn" >log.ini
}

start() {
    TMPDIR=/var/mail setsid node "$directory/npm/Haraka/node_modules/Haraka/bin/haraka" --configs /etc/haraka &
}

stop() { pkill --full bin/haraka; }

refuse_elsewhere() { :; }
accept_elsewhere() { echo elsewhere.example >>/etc/haraka/config/host_list; }
