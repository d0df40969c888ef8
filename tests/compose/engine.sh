#!/bin/bash
# A Docker engine for tests, in a network namespace of its own, for a machine that has the packages and no running engine.
#
#   engine.sh start     prints the lines to eval: DOCKER_HOST, and NET, the command before what talks to published ports
#   engine.sh stop
#
# It takes over nothing of the machine: its network, socket and data are its own. Images stay for the next time.
set -euo pipefail
export PATH="$PATH:/usr/sbin:/sbin"
home=${WARMKEY_DOCKER_HOME:-/var/tmp/warmkey-docker}
name=warmkey-docker
socket=$home/docker.sock

is_ours() { [ -s "$home/pid" ] && [ "$(cat "/proc/$(cat "$home/pid")/comm" 2>/dev/null)" = dockerd ]; }

start() {
    mkdir -p "$home/data" "$home/exec"
    if ! is_ours; then
        ip netns list | grep -q "^$name\b" || ip netns add "$name"
        ip -n "$name" link set lo up
        rm -f "$home/pid"
        # nsenter: `ip netns exec` would hide the control groups.
        setsid nsenter --net="/run/netns/$name" -- dockerd --host "unix://$socket" --data-root "$home/data" \
            --exec-root "$home/exec" --pidfile "$home/pid" --storage-driver overlay2 </dev/null >"$home/log" 2>&1 &
        for _ in $(seq 150); do
            DOCKER_HOST=unix://$socket docker info >/dev/null 2>&1 && break
            sleep 0.2
        done
        is_ours || { tail -20 "$home/log" >&2; exit 1; }
    fi
    echo "export DOCKER_HOST=unix://$socket NET='nsenter --net=/run/netns/$name'"
}

stop() {
    if is_ours; then
        pid=$(cat "$home/pid")
        kill "$pid"
        for _ in $(seq 300); do is_ours || break; sleep 0.1; done
    fi
    ! ip netns list | grep -q "^$name\b" || ip netns delete "$name"
}

case ${1:-} in
    start) start ;;
    stop) stop ;;
    *) sed -n 2,7p "$0"; exit 64 ;;
esac
