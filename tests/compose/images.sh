#!/bin/bash
# Stand-ins for the images that Dockerfile and docker-compose.yml name, for a machine that reaches no registry of images.
# They are made of Debian's packages and this machine's Rust. `images.sh` makes those that are missing, and prints the lines to eval.
#
# There is none of Grafana, and one of Jaeger only where JAEGER names its program.
set -euo pipefail
export PATH="$PATH:/usr/sbin:/sbin"
home=${WARMKEY_DOCKER_HOME:-/var/tmp/warmkey-docker}
docker() { /usr/bin/docker "$@"; }
is_there() { docker image inspect "$1" >/dev/null 2>&1; }

rootfs() { # NAME PACKAGES: a folder with Debian and these packages, for as long as it takes to import it
    rm -rf "${home:?}/$1"
    nice -n 19 mmdebstrap --quiet --variant=minbase --include="$2" bookworm "$home/$1" >&2
}

parts() {
    is_there warmkey.test/parts:1 && return
    rootfs parts ca-certificates,redis-server,redis-tools,haproxy,postgresql-15,prometheus,wget
    cat >"$home/parts/usr/local/bin/start-postgres" <<'END'
#!/bin/bash
# As much of the official image's start as the compose file and the chart need: as root, or as the user 999.
set -eu
export PATH=$PATH:/usr/lib/postgresql/15/bin
if [ "$(id -u)" = 0 ]; then
    install -d -o official "$PGDATA" /var/run/postgresql
    exec setpriv --reuid official --regid official --clear-groups "$0"
fi
if [ ! -e "$PGDATA/PG_VERSION" ]; then
    initdb -D "$PGDATA" -U "$POSTGRES_USER" -A scram-sha-256 --pwfile=<(echo "$POSTGRES_PASSWORD") --no-sync >/dev/null
    echo 'host all all all scram-sha-256' >>"$PGDATA/pg_hba.conf"
    echo "CREATE DATABASE \"$POSTGRES_DB\"" | postgres --single -D "$PGDATA" postgres >/dev/null
fi
exec postgres -D "$PGDATA" -c listen_addresses='*'
END
    chmod +x "$home/parts/usr/local/bin/start-postgres"
    echo 'official:x:999:999::/var/lib/postgresql:/bin/false' >>"$home/parts/etc/passwd"
    echo 'official:x:999:' >>"$home/parts/etc/group"
    tar -C "$home/parts" -c . | docker import - warmkey.test/parts:1 >&2
    rm -rf "${home:?}/parts"
    docker build -q -t warmkey.test/postgres:1 - >&2 <<'END'
FROM warmkey.test/parts:1
ENV PGDATA=/var/lib/postgresql/data
ENTRYPOINT ["/usr/local/bin/start-postgres"]
END
    docker build -q -t warmkey.test/prometheus:1 - >&2 <<'END'
FROM warmkey.test/parts:1
WORKDIR /prometheus
ENTRYPOINT ["/usr/bin/prometheus"]
END
    docker build -q -t warmkey.test/redis:1 - >&2 <<'END'
FROM warmkey.test/parts:1
ENTRYPOINT ["/usr/bin/env"]
END
}

rust() { # with everything that Cargo.lock names, since a build has no network either
    is_there warmkey.test/rust:1 && return
    rootfs rust ca-certificates,gcc,libc6-dev,binutils
    local toolchain cargo=${CARGO_HOME:-$HOME/.cargo}
    toolchain=$(rustc --print sysroot)
    cargo fetch --locked >&2
    mkdir -p "$home/rust/opt/rust" "$home/rust/opt/cargo/registry"
    tar -C "$toolchain" --exclude=./share -c . | tar -C "$home/rust/opt/rust" -x
    cp -a "$cargo/registry/index" "$cargo/registry/cache" "$home/rust/opt/cargo/registry/"
    tar -C "$home/rust" -c . | docker import --change "ENV PATH=/opt/rust/bin:/usr/sbin:/usr/bin:/sbin:/bin" \
        --change "ENV CARGO_HOME=/opt/cargo" --change "ENV CARGO_NET_OFFLINE=true" - warmkey.test/rust:1 >&2
    rm -rf "${home:?}/rust"
}

jaeger() {
    is_there warmkey.test/jaeger:1 && return
    local folder
    folder=$(mktemp -d)
    cp "$JAEGER" "$folder/jaeger"
    printf 'FROM warmkey.test/parts:1\nCOPY jaeger /usr/local/bin/jaeger\nENV JAEGER_LISTEN_HOST=0.0.0.0\nENTRYPOINT ["/usr/local/bin/jaeger"]\n' >"$folder/Dockerfile"
    docker build -q -t warmkey.test/jaeger:1 "$folder" >&2
    rm -r "$folder"
}

parts
rust
echo "export RUST_IMAGE=warmkey.test/rust:1 REDIS_IMAGE=warmkey.test/redis:1 HAPROXY_IMAGE=warmkey.test/parts:1"
echo "export POSTGRES_IMAGE=warmkey.test/postgres:1 PROMETHEUS_IMAGE=warmkey.test/prometheus:1 GRAFANA_IMAGE="
if [ -n "${JAEGER:-}" ]; then
    jaeger
    echo "export JAEGER_IMAGE=warmkey.test/jaeger:1"
else
    echo "export JAEGER_IMAGE="
fi
