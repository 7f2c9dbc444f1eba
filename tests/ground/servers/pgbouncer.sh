packages=pgbouncer
folder=/etc/pgbouncer
port=2520
boxes=none

version() { dpkg-query --show --showformat='${Version}' pgbouncer; }

setup() { session_mode; }

# In front of the server whose socket is in $PGHOST; that lets in root and its own user, by who they are.
configuration() {
    cat >/etc/pgbouncer/pgbouncer.ini <<END
[databases]
* = host=$PGHOST port=$PGPORT user=registrar
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = $port
auth_type = any
unix_socket_dir =
pidfile = /run/pgbouncer/pid
logfile = /var/log/pgbouncer.log
user = registrar
max_client_conn = 200
default_pool_size = 60
$*
END
}

session_mode() { configuration "pool_mode = session"; }
ignore_options() { configuration "pool_mode = session
ignore_startup_parameters = options"; }
transaction_mode() { configuration "pool_mode = transaction
ignore_startup_parameters = options"; }

start() {
    install -d -o registrar /run/pgbouncer
    install -o registrar /dev/null /var/log/pgbouncer.log
    pgbouncer --daemon /etc/pgbouncer/pgbouncer.ini
}

stop() { pkill -x pgbouncer; }
