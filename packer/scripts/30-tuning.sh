#!/usr/bin/env bash
# Kernel, journal and descriptor limits for a machine that carries tens of thousands of connections. Both files are the
# ones that `install.sh --tune` installs on any machine; each of their lines has its reason.
#
#     FILES=/tmp/relay-image             the folder that holds relay-sysctl.conf and relay-journald.conf
set -euo pipefail
files=${FILES:-/tmp/relay-image}

install -D -m 644 "$files/relay-sysctl.conf" /usr/local/lib/sysctl.d/60-relay.conf
install -D -m 644 "$files/relay-journald.conf" /etc/systemd/journald.conf.d/60-relay.conf

# relay.service asks for 1,048,576 descriptors, and the kernel refuses more than fs.nr_open: systemd raises that at boot,
# and where something has lowered it, the machine would carry fewer connections and say so only in relay's log.
install -d /etc/sysctl.d
cat >/etc/sysctl.d/61-relay-image.conf <<'TEXT'
fs.nr_open = 1048576
TEXT
