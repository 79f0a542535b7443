#!/usr/bin/env bash
# Pins every dependency, with hashes, for Python 3.11 and newer on every platform (markers tell them
# apart). serve.txt comes first: the others are held to its versions, so that one environment can
# hold serving and development, and so that the GPU image serves with the versions that were tested.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT
"${PYTHON:-python3}" -m venv "$tools"
"$tools/bin/python" -m pip install --quiet --disable-pip-version-check uv==0.13.9

lock() { # lock NAME [OPTION...]
    local name=$1
    shift
    "$tools/bin/uv" pip compile pyproject.toml requirements/build.in --quiet \
        --universal --python-version 3.11 --generate-hashes --no-annotate \
        --custom-compile-command "make lock" \
        --output-file "requirements/$name.txt" "$@"
}

lock serve --extra cpu --extra int8 --upgrade
lock traces --extra cpu --extra int8 --extra otel --upgrade --constraint requirements/serve.txt
lock gpu --extra gpu --upgrade --constraint requirements/serve.txt
lock dev --extra cpu --extra int8 --extra otel --extra cli --extra bulk --extra training --extra dev --upgrade \
    --constraint requirements/serve.txt --constraint requirements/torch.in
# For an image whose torch is built for CPUs alone: without torch, and all that PyPI's asks for.
mapfile -t gpu_only < <(grep -oE '^(torch|torchvision|triton|(cuda|nvidia)-[a-z0-9-]+)==' \
    requirements/dev.txt | tr -d =)
lock train --extra cpu --extra training --upgrade --constraint requirements/dev.txt \
    "${gpu_only[@]/#/--no-emit-package=}"
