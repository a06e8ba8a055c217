#!/usr/bin/env bash
# relay, from its Debian package: dpkg then lists it in the image's SBOM, verifies its files (dpkg --verify relay) and
# recompiles it when an update of the system replaces Python. The package installs without a network.
#
#     IMAGE=relay (default) | haproxy    nothing is done unless it is relay
#     FILES=/tmp/relay-image             the folder that holds relay_VERSION_ARCH.deb
set -euo pipefail
[ "${IMAGE:-relay}" = relay ] || exit 0
export DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1
files=${FILES:-/tmp/relay-image}
settings=/etc/relay/relay.toml

arch=$(dpkg --print-architecture)
packages=("$files"/relay_*_"$arch".deb)
if [ ${#packages[@]} != 1 ] || [ ! -f "${packages[0]}" ]; then
    echo "error: $files has to hold one relay_VERSION_$arch.deb, and has: ${packages[*]} (make deb builds it)" >&2
    exit 1
fi
apt-get --yes --quiet --no-install-recommends --allow-downgrades --reinstall --option DPkg::Lock::Timeout=600 \
    --option Dpkg::Use-Pty=0 --option Dpkg::Options::=--force-confold install "${packages[0]}"

# The package's template names no upstream: relay would take that for a mistake of somebody's and stay down. Without the
# file relay starts again each second until the first boot has brought one.
if [ -f $settings ] && ! grep -qE '^[[:space:]]*[^#[:space:]]' $settings; then
    rm $settings
fi
systemctl enable --quiet relay.service
# Settings from the machine's user data, if this version of relay has them.
for unit in relay-settings.service relay-settings.timer; do
    if [ -e "/usr/lib/systemd/system/$unit" ]; then
        systemctl enable --quiet "$unit"
    fi
done
