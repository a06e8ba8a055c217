#!/usr/bin/env bash
# The last script: what belongs to this machine and not to an image goes. Afterwards nobody can log in (waagent removes
# the user that baked the image). Each step is taken where its program is there.
#
#     FILES=/tmp/relay-image             removed as well
#     DEPROVISION=on (default) | off     off: for a machine that is no image and stays in use
set -euo pipefail
export HISTSIZE=0
files=${FILES:-/tmp/relay-image}

apt-get clean
rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/cache/debconf/*-old /var/lib/dpkg/*-old

# cloud-init runs again on each machine that is made of the image, as on its first boot.
if command -v cloud-init >/dev/null; then
    cloud-init clean --logs --seed --machine-id
fi
rm -rf /var/lib/cloud/*

# Host keys are made by cloud-init at the first boot; one pair in every machine would be no secret.
rm -f /etc/ssh/ssh_host_*
# Empty, and not missing: systemd makes a new one at boot without taking that boot for an installation.
: >/etc/machine-id
rm -f /var/lib/dbus/machine-id /var/lib/systemd/random-seed /var/lib/systemd/credential.secret
rm -f /var/lib/chrony/* /var/lib/dhcp/*.leases /var/lib/systemd/network/* 2>/dev/null || :

# Logs: those of this machine's life. journald may be running and goes on into a file of its own, which goes too.
if command -v journalctl >/dev/null && [ -d /run/systemd/system ]; then
    journalctl --quiet --rotate
    journalctl --quiet --vacuum-size=1
fi
rm -rf /var/log/journal/*
find /var/log -type f \( -name '*.gz' -o -name '*.[0-9]' -o -name '*.old' \) -delete
find /var/log -type f -exec truncate --size 0 {} +
rm -rf /root/.bash_history /root/.ssh /root/.cache /root/.wget-hsts /tmp/* /var/tmp/* "$files"

# Leases, the agent's state, the root password and the last user with its home folder. Hands the machine over.
if [ "${DEPROVISION:-on}" = on ] && command -v waagent >/dev/null; then
    waagent -force -deprovision+user
fi
rm -f /root/.bash_history

# A machine that still has what it must not have fails the build here, for afterwards nobody can look.
left=$(find /etc/ssh -name 'ssh_host_*' 2>/dev/null || :)
[ -z "$left" ] || { echo "error: host keys are left: $left" >&2 && exit 1; }
[ ! -s /etc/machine-id ] || [ "$(cat /etc/machine-id)" = uninitialized ] ||
    { echo "error: /etc/machine-id is not empty" >&2 && exit 1; }
sync
