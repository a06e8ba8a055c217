#!/usr/bin/env bash
# The system's packages, brought up to date, and those that the later scripts and the image need.
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1
apt() { apt-get --yes --quiet --option DPkg::Lock::Timeout=600 --option Dpkg::Use-Pty=0 "$@"; }

# cloud-init may still be installing or writing. Exit status 2: done, with something that it recovered from.
if [ -d /run/systemd/system ] && command -v cloud-init >/dev/null; then
    cloud-init status --wait >/dev/null || [ $? -eq 2 ]
fi

apt update
apt upgrade
# The Python that relay runs with, the checks' TLS (openssl), and what the hardening list asks for (apparmor, sudo).
apt install --no-install-recommends apparmor ca-certificates chrony curl iproute2 logrotate openssl procps python3 \
    sudo unattended-upgrades
