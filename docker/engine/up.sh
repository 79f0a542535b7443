#!/usr/bin/env bash
# Brings up a Docker engine with compose and buildx for `make test-compose`, and the base images
# the project builds on. Safe to repeat. Ends with 0 where an engine is ready, with 3 and a reason
# on standard error where none can be had here.
#
# An engine that already runs is used as it is. Otherwise one is installed from Debian's packages,
# which takes root on Debian 12: a continuous integration machine, not somebody's desktop. Base
# images come from their registry; where it cannot be reached, stand-ins are made from Debian's
# packages (images.sh), good for testing the stack and nothing else.
#
# ENGINE_HOME (default /var/tmp/lan-fer-engine) holds its data and log; down.sh stops it.
set -euo pipefail
here=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
ENGINE_HOME=${ENGINE_HOME:-/var/tmp/lan-fer-engine}
export DEBIAN_FRONTEND=noninteractive

cannot() { echo "no Docker engine: $*" >&2; exit 3; }
running() { docker info >/dev/null 2>&1; }
plugins() { docker compose version >/dev/null 2>&1 && docker buildx version >/dev/null 2>&1; }

# Debian 12 has neither compose v2 nor buildx, and its engine is too old for both. These few
# programs come from Debian 13, which ranks below Debian 12 in an apt set-up of our own: whatever
# else they need stays Debian 12's.
install_packages() {
    local apt=$ENGINE_HOME/apt mirror keys=/usr/share/keyrings/debian-archive-keyring.gpg
    mkdir -p "$apt/lists/partial"
    apt-get update --quiet=2 || cannot "apt-get update failed"
    # shellcheck disable=SC2016 # apt fills these in
    mirror=$(apt-get indextargets --format '$(RELEASE) $(REPO_URI)' 'Created-By: Packages' \
        | awk '$1 == "bookworm" && $2 ~ /debian\/?$/ { sub("/$", "", $2); print $2; exit }')
    [ -n "$mirror" ] || cannot "apt knows no mirror of Debian 12 (bookworm)"
    cat > "$apt/sources.list" <<SOURCES
deb [signed-by=$keys] $mirror bookworm main
deb [signed-by=$keys] $mirror bookworm-updates main
deb [signed-by=$keys] $mirror-security bookworm-security main
deb [signed-by=$keys] $mirror trixie main
SOURCES
    printf 'Package: *\nPin: release n=trixie\nPin-Priority: 100\n' > "$apt/preferences"
    local options=(
        -o "Dir::Etc::SourceList=$apt/sources.list" -o "Dir::Etc::SourceParts=/dev/null"
        -o "Dir::Etc::Preferences=$apt/preferences" -o "Dir::State::Lists=$apt/lists"
        -o "Dir::Cache::PkgCache=" -o "Dir::Cache::SrcPkgCache=" -o "APT::Sandbox::User=root"
    )
    apt-get "${options[@]}" --quiet=2 update || cannot "apt-get update failed"
    apt-get "${options[@]}" --quiet=2 install --yes --no-install-recommends \
        containerd iptables runc \
        docker.io/trixie docker-cli/trixie docker-buildx/trixie docker-compose/trixie \
        > "$ENGINE_HOME/apt.log" 2>&1 || { tail -20 "$ENGINE_HOME/apt.log" >&2; cannot "its packages cannot be installed"; }
    hash -r
}

start_engine() {
    setsid nohup dockerd --data-root "$ENGINE_HOME/data" --pidfile "$ENGINE_HOME/dockerd.pid" \
        --log-level warn > "$ENGINE_HOME/dockerd.log" 2>&1 < /dev/null &
    for _ in $(seq 120); do
        running && return
        sleep 0.5
    done
    tail -20 "$ENGINE_HOME/dockerd.log" >&2
    cannot "dockerd did not come up within a minute"
}

if ! running || ! plugins; then
    [ "$(id -u)" = 0 ] || cannot "none runs here with compose and buildx, installing one takes root"
    command -v apt-get >/dev/null || cannot "none runs here, and there is no apt to install one"
    mkdir -p "$ENGINE_HOME"
    if ! command -v dockerd >/dev/null || ! command -v iptables >/dev/null || ! plugins; then
        install_packages
    fi
    running || start_engine
fi
"$here/images.sh"
echo "Docker engine $(docker version --format '{{.Server.Version}}'), compose $(docker compose version --short)"
