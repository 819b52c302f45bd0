#!/bin/sh
# Install Debian or Ubuntu packages when that is allowed here, or say what to do: `sh scripts/apt.sh PACKAGE...`.
set -eu
if ! command -v apt-get >/dev/null 2>&1; then
    echo "Please install with your system's package manager: $*" >&2
    exit 1
fi
if [ "$(id -u)" = 0 ]; then
    as_root=
elif command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
    as_root=sudo
else
    echo "Please run, then try again:  sudo apt-get install $*" >&2
    exit 1
fi
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! { $as_root apt-get update -qq && $as_root apt-get install -y -qq --no-install-recommends "$@"; } >"$log" 2>&1; then
    echo "apt-get could not install: $*" >&2
    tail -n 5 "$log" >&2
    exit 1
fi
