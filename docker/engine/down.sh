#!/usr/bin/env bash
# Stops the Docker engine that up.sh started; one that ran before is left alone.
set -euo pipefail
ENGINE_HOME=${ENGINE_HOME:-/var/tmp/lan-fer-engine}
pidfile=$ENGINE_HOME/dockerd.pid

[ -s "$pidfile" ] || exit 0
pid=$(cat "$pidfile")
[ "$(cat "/proc/$pid/comm" 2>/dev/null)" = dockerd ] || exit 0

containers=$(docker ps --all --quiet)
# shellcheck disable=SC2086 # one word per container
[ -z "$containers" ] || docker rm --force $containers >/dev/null
kill "$pid"
for _ in $(seq 60); do
    kill -0 "$pid" 2>/dev/null || break
    sleep 0.5
done
