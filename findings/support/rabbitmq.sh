# Sourced after common.sh. Needs Debian's package rabbitmq-server, of which only the program is used, not the service.

# start_rabbitmq: a node on loopback, for this script alone; sets $amqp, the address of its virtual host "/".
start_rabbitmq() {
    local program=/usr/lib/rabbitmq/bin/rabbitmq-server amqp_port names
    [ -x "$program" ] || {
        echo "needs Debian's package rabbitmq-server" >&2
        exit 2
    }
    amqp_port=$(free_port) names=$(free_port)
    mkdir "$folder/node"
    printf '%s\n' "listeners.tcp.1 = 127.0.0.1:$amqp_port" "loopback_users = none" "log.file.level = warning" \
        "disk_free_limit.absolute = 50MB" >"$folder/node/rabbitmq.conf"
    echo "[]." >"$folder/node/enabled_plugins"
    stop_server() {
        kill -TERM -- "-$node" || true
        wait "$node" || true
        /usr/bin/epmd -port "$epmd_port" -kill
    }
    epmd_port=$names
    env -i PATH="$PATH" LANG=C.UTF-8 HOME="$folder/node" \
        RABBITMQ_NODENAME="finding$amqp_port@localhost" RABBITMQ_DIST_PORT="$(free_port)" \
        RABBITMQ_MNESIA_BASE="$folder/node/mnesia" RABBITMQ_LOG_BASE="$folder/node/log" \
        RABBITMQ_PID_FILE="$folder/node/pid" RABBITMQ_CONFIG_FILE="$folder/node/rabbitmq" \
        RABBITMQ_CONF_ENV_FILE="$folder/node/rabbitmq-env.conf" \
        RABBITMQ_ENABLED_PLUGINS_FILE="$folder/node/enabled_plugins" \
        ERL_EPMD_PORT="$names" ERL_EPMD_ADDRESS=127.0.0.1 \
        setsid "$program" >"$folder/node.log" 2>&1 &
    node=$!
    amqp="amqp://guest:guest@127.0.0.1:$amqp_port/"
    for _ in $(seq 600); do
        if (exec 3<>"/dev/tcp/127.0.0.1/$amqp_port") 2>&-; then return; fi
        kill -0 "$node" 2>&- || break
        sleep 0.2
    done
    cat "$folder/node.log" >&2
    exit 2
}
