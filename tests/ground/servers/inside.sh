# What every server stands on. The first process of namespaces of its own (mounts, host name, processes): whatever is
# done to /etc, /usr, /var and /run stays in memory, and ends with it, as does every process.
#
#     inside.sh NAME DIRECTORY USERS    DIRECTORY keeps what was fetched, for the next run; so many mailboxes
set -euo pipefail
name=$1 directory=$2 users=$3
here=$(dirname "$0")
. "$here/$name.sh"

own_folders() {
    local names part
    names=$(cat /etc/resolv.conf)
    mkdir -p "$directory/memory"
    mount -t tmpfs -o mode=755 ground "$directory/memory"
    for part in etc usr var; do
        mkdir "$directory/memory/$part" "$directory/memory/$part.work"
        mount -t overlay ground "/$part" \
            -o "lowerdir=/$part,upperdir=$directory/memory/$part,workdir=$directory/memory/$part.work"
    done
    mount -t tmpfs -o mode=755 ground /run
    mkdir -m 1777 /run/lock
    rm -f /etc/resolv.conf
    echo "$names" >/etc/resolv.conf  # the system's, until everything is installed
}

own_name() {
    hostname mail.ground.example
    echo mail.ground.example >/etc/hostname
    echo ground.example >/etc/mailname
    echo "127.0.0.1 mail.ground.example mail localhost" >/etc/hosts
}

installed() {
    printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d  # started by us, not by its package
    chmod +x /usr/sbin/policy-rc.d
    mkdir -p "$directory/archives/partial"
    local install=(flock "$directory/archives" apt-get install --yes --quiet --no-install-recommends
        -o "Dir::Cache::archives=$directory/archives" -o APT::Keep-Downloaded-Packages=true
        -o APT::Sandbox::User=root -o Dpkg::Use-Pty=0)
    export DEBIAN_FRONTEND=noninteractive
    "${install[@]}" "$@" || { apt-get update --quiet && "${install[@]}" "$@"; }
}

# Mailboxes u0@ground.example, u1@…: users of the system, as the servers know them without being told.
own_users() {
    local number
    mkdir -p /var/home
    for ((number = 0; number < users; number++)); do
        echo "u$number:x:$((20000 + number)):8::/var/home/u$number:/bin/false" >>/etc/passwd
        echo "u$number:*:19000:0:99999:7:::" >>/etc/shadow
        install -d -m 700 -o $((20000 + number)) -g 8 "/var/home/u$number" "/var/home/u$number/Maildir"{,/cur,/new,/tmp}
    done
}

# The domains of senders and recipients exist; nowhere.example, and all else, does not.
own_names() {
    local domain records=() resolver=127.0.1.$((port - 2500))
    for domain in ground elsewhere sender; do
        records+=("--host-record=$domain.example,127.0.0.1" "--mx-host=$domain.example,mail.ground.example")
    done
    dnsmasq --listen-address=$resolver --bind-interfaces --no-resolv --no-hosts --local=/#/ --user=root \
        --pid-file=/run/dnsmasq.pid --host-record=mail.ground.example,127.0.0.1 "${records[@]}"
    echo "nameserver $resolver" >/etc/resolv.conf
}

own_folders
own_name
installed $packages dnsmasq-base
if declare -F fetch >/dev/null; then
    fetch # while names are still the system's
fi
own_users
own_names
if [ -n "$folder" ]; then
    cp -a "$folder" "$folder.shipped"
fi
echo "ready: $port $boxes $(declare -F | cut -d" " -f3 | paste -sd,) $(version)"
while sleep 1; do :; done  # and reaps what the daemons leave
