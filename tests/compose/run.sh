#!/bin/bash
# What `make test-compose` does: finds or starts a Docker engine, finds or makes the images, and runs compose.py beside it.
#
# LOCAL_IMAGES=1: without a registry; JAEGER=PROGRAM then adds Jaeger. The engine that was started here is stopped at the end.
set -euo pipefail
# Debian's client knows BuildKit. Another client that comes first on the path may not.
[ ! -x /usr/bin/docker ] || export PATH="/usr/bin:$PATH"
export DOCKER_BUILDKIT=1 COMPOSE_DOCKER_CLI_BUILD=1
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
NET=
if ! docker info >/dev/null 2>&1; then
    if [ "$(id -u)" != 0 ] || ! PATH="$PATH:/usr/sbin" command -v dockerd >/dev/null; then
        echo "test-compose: no Docker engine answers, and none can be started (as root: apt-get install docker.io)" >&2
        exit 1
    fi
    sh "$here/../need.sh" iptables:iptables ip:iproute2
    lines=$("$here/engine.sh" start)
    eval "$lines"
    trap '"$here/engine.sh" stop' EXIT
fi
if [ -n "${LOCAL_IMAGES:-}" ]; then
    sh "$here/../need.sh" mmdebstrap:mmdebstrap
    lines=$("$here/images.sh")
    eval "$lines"
fi
$NET python3 -B "$here/compose.py" "$@"
