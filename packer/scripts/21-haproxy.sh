#!/usr/bin/env bash
# HAProxy in relay's place, with a configuration that is as near to relay's defaults as HAProxy can be: for a comparison
# in the fleet. What the machine is for (the hub's name) is in /etc/haproxy/relay.env, which cloud-init writes
# (write_files); until that is there, HAProxy does not start.
#
#     IMAGE=haproxy                      nothing is done unless it is haproxy
#     FILES=/tmp/relay-image             the folder that holds haproxy.cfg and haproxy.service.conf
set -euo pipefail
[ "${IMAGE:-relay}" = haproxy ] || exit 0
export DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1
files=${FILES:-/tmp/relay-image}

# Not started by its package: it has no hub yet.
if [ -d /run/systemd/system ] && ! [ -e /usr/sbin/haproxy ]; then
    systemctl mask --quiet --runtime haproxy.service
fi
apt-get --yes --quiet --no-install-recommends --option DPkg::Lock::Timeout=600 --option Dpkg::Use-Pty=0 \
    --option Dpkg::Options::=--force-confold install haproxy
if [ -d /run/systemd/system ]; then
    systemctl unmask --quiet --runtime haproxy.service
fi
install -m 644 "$files/haproxy.cfg" /etc/haproxy/haproxy.cfg
install -d /etc/systemd/system/haproxy.service.d
install -m 644 "$files/haproxy.service.conf" /etc/systemd/system/haproxy.service.d/relay.conf
# rsyslog's socket in HAProxy's chroot: the journal gets its lines from standard output.
rm -f /etc/rsyslog.d/49-haproxy.conf
HUB=hub.invalid haproxy -c -q -f /etc/haproxy/haproxy.cfg
systemctl enable --quiet haproxy.service
