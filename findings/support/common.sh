# Sourced by the scripts: a temporary folder that is gone at the end, and the packages in an environment of its own.

folder=$(mktemp -d "${TMPDIR:-/tmp}/finding.XXXXXX")
chmod 755 "$folder"
stop_server() { :; } # replaced by the scripts that start one
trap 'stop_server >"$folder/stop.log" 2>&1 || true; rm -rf "$folder"' EXIT
trap 'exit 130' INT TERM

# install NAME==VERSION...: exactly these, and what they need.
install() {
    python3 -m venv "$folder/venv"
    "$folder/venv/bin/pip" install --quiet --disable-pip-version-check "$@" 2>"$folder/pip.log" || {
        cat "$folder/pip.log" >&2
        exit 2
    }
}

# python [ARGUMENT...]: runs the program on standard input. It fails by an assertion when the behaviour has changed.
python() { (cd "$folder" && timeout 120 "$folder/venv/bin/python" - "$@"); }

free_port() {
    python3 -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])'
}
