. "$here/npm.sh"

packages=
folder=
port=2515
boxes=/var/mail

version() { echo 3.0.0; }

fetch() { from_npm "maildev@$(version)"; }

setup() { :; }

start() {
    setsid node "$directory/npm/maildev/node_modules/.bin/maildev" --ip 127.0.0.1 --smtp "$port" --disable-web \
        --mail-directory /var/mail --max-emails 0 &
}

stop() { pkill --full bin/maildev; }
