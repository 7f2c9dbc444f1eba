# Sourced by the scripts of servers from npm.

# A package with its version pinned, in a folder of its own; fetched once.
from_npm() {
    local into="$directory/npm/${1%@*}"
    [ -e "$into/$1" ] && return
    mkdir -p "$into"
    npm install --prefix "$into" --no-package-lock --ignore-scripts --no-audit --no-fund --silent "$1"
    touch "$into/$1"
}
