#!/bin/sh
# Checks that this machine has the commands that a test starts: `need.sh COMMAND:PACKAGE...`
#
# As root on Debian, the script installs the packages of missing commands and starts no service. As
# another user, it names the missing packages in one line and fails. It never upgrades or removes a
# package.
set -eu
PATH="$PATH:/usr/sbin:/sbin"
# Debian keeps the programs of each PostgreSQL in a folder of their own.
for folder in /usr/lib/postgresql/*/bin; do
    PATH="$PATH:$folder"
done

packages=
for pair in "$@"; do
    command -v "${pair%%:*}" >/dev/null || packages="$packages ${pair#*:}"
done
[ -n "$packages" ] || exit 0

if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "missing:$packages (as root: apt-get install --no-install-recommends$packages)" >&2
    exit 1
fi

# A package's start script asks this file for permission. An administrator's file stays as it is.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    trap 'exit 1' HUP INT TERM
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
fi

echo "installing:$packages"
log=$(mktemp)
export DEBIAN_FRONTEND=noninteractive
if ! { apt-get -q -o DPkg::Lock::Timeout=120 update &&
    apt-get -q -y -o DPkg::Lock::Timeout=120 install --no-install-recommends $packages; } >"$log" 2>&1 </dev/null; then
    tail -n 20 "$log" >&2
    rm -f "$log"
    echo "apt-get could not install:$packages" >&2
    exit 1
fi
rm -f "$log"
