#!/usr/bin/env bash
# Sees to it that the base images are there: pulled, or made from Debian's packages as stand-ins
# under the same names where the registry cannot be reached. A stand-in carries the label
# org.lan-fer.stand-in and holds Debian's Python or Prometheus instead of the official build.
# Certificates this machine trusts go in too, so that a proxy it trusts is trusted in a build.
set -euo pipefail
python=python:3.11-slim-bookworm
prometheus=prom/prometheus:v2.42.0
certificates=/etc/ssl/certs/ca-certificates.crt

present() { docker image inspect "$1" >/dev/null 2>&1; }
pulled() { timeout 120 docker pull --quiet "$1" >/dev/null 2>&1; }
cannot() { echo "no use of the Docker engine: $image cannot be $1" >&2; exit 3; }

make_python() {
    command -v mmdebstrap >/dev/null \
        || apt-get install --quiet=2 --yes --no-install-recommends mmdebstrap >/dev/null
    # The official image has Python in /usr/local; only the names are needed there.
    # shellcheck disable=SC2016 # $1 is mmdebstrap's: the root of the new system
    mmdebstrap --quiet --variant=minbase \
        --include=ca-certificates,python3,python3-venv,python3-pip \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' --aptopt='Acquire::Languages "none"' \
        --customize-hook='ln -s /usr/bin/python3 "$1/usr/local/bin/python"' \
        --customize-hook='ln -s /usr/bin/python3 "$1/usr/local/bin/python3"' \
        --customize-hook="copy-in $certificates /etc/ssl/certs" \
        bookworm - \
        | docker import --message "stand-in" --change "LABEL org.lan-fer.stand-in=$python" \
            --change "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" \
            --change "ENV LANG=C.UTF-8 SSL_CERT_FILE=$certificates PIP_CERT=$certificates" \
            - "$python" >/dev/null
}

make_prometheus() {
    docker build --quiet --tag "$prometheus" - >/dev/null <<DOCKERFILE
FROM $python
LABEL org.lan-fer.stand-in=$prometheus
RUN apt-get update -qq \
    && apt-get install -qq --yes --no-install-recommends prometheus busybox >/dev/null \
    && ln -s /bin/busybox /usr/local/bin/wget \
    && rm -rf /var/lib/apt/lists/* \
    && mkdir -p /prometheus /etc/prometheus && chown nobody:nogroup /prometheus
USER nobody
EXPOSE 9090
VOLUME /prometheus
ENTRYPOINT ["/usr/bin/prometheus"]
CMD ["--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/prometheus"]
DOCKERFILE
}

for image in "$python" "$prometheus"; do
    if present "$image" || pulled "$image"; then continue; fi
    [ "$(id -u)" = 0 ] || cannot "pulled, and making a stand-in takes root"
    echo "$image cannot be pulled: making a stand-in from Debian's packages"
    if [ "$image" = "$python" ]; then make=make_python; else make=make_prometheus; fi
    "$make" || cannot "pulled or made"
done
