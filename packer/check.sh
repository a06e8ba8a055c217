#!/usr/bin/env bash
# Runs the image's checks on the machine that Packer bakes, over SSH, from where Packer runs; build.pkr.hcl calls it.
#
#     IMAGE, MACHINE_HOST, MACHINE_PORT, MACHINE_USER, MACHINE_KEY (the private key itself)
#     PYTHON     the interpreter with the test packages (default: .venv/bin/python of this tree)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
umask 077
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

printf '%s\n' "$MACHINE_KEY" >"$folder/key"
# The machine is minutes old, and nobody has seen its host key before.
cat >"$folder/config" <<TEXT
Host *
    IdentityFile $folder/key
    IdentitiesOnly yes
    StrictHostKeyChecking accept-new
    UserKnownHostsFile $folder/known_hosts
    ConnectTimeout 30
TEXT
"${PYTHON:-.venv/bin/python}" -m pytest -m image tests/image/checks -p no:cacheprovider --image "$IMAGE" --building \
    --kernel --machine "ssh://$MACHINE_USER@$MACHINE_HOST:$MACHINE_PORT?sudo=true&ssh_config=$folder/config"
