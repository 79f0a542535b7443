#!/usr/bin/env bash
# Asks the Python advisory databases about every package of the lock files. A finding that does not
# concern the project goes into IGNORED, with the reason here and in SECURITY.md.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# ID of an advisory and why it does no harm here, one pair a line.
IGNORED=()

tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT
"${PYTHON:-python3}" -m venv "$tools"
"$tools/bin/python" -m pip install --quiet --disable-pip-version-check pip-audit==2.10.1

# Strict: a package the databases could not be asked about is a failure, not a pass.
options=(--strict --require-hashes --disable-pip --progress-spinner off)
for id in "${IGNORED[@]}"; do options+=(--ignore-vuln "$id"); done
for lock in serve traces gpu dev; do
    echo "requirements/$lock.txt"
    "$tools/bin/pip-audit" "${options[@]}" --requirement "requirements/$lock.txt"
done
