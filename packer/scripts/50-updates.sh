#!/usr/bin/env bash
# Security updates on running instances. The image is replaced at each release, so this is for the weeks between: only
# Ubuntu's security pocket, never a reboot (a restart of the machine is the fleet's rolling upgrade, which drains), and
# never a restart of relay or HAProxy behind their operator's back. Instances install at different times within the
# hour that apt-daily-upgrade.timer spreads them over, so that one bad update does not reach the fleet at once. A kernel
# update takes effect with the next image.
#
#     UNATTENDED_UPGRADES=on (default) | off    off: for a fleet without a way to Ubuntu's archive, or whose instances
#                                               may differ from the image in nothing
set -euo pipefail

case ${UNATTENDED_UPGRADES:-on} in
on) value=1 ;;
off) value=0 ;;
*)
    echo "error: UNATTENDED_UPGRADES is '$UNATTENDED_UPGRADES', and has to be on or off" >&2
    exit 1
    ;;
esac
cat >/etc/apt/apt.conf.d/90relay-image <<TEXT
APT::Periodic::Update-Package-Lists "$value";
APT::Periodic::Unattended-Upgrade "$value";
#clear Unattended-Upgrade::Allowed-Origins;
Unattended-Upgrade::Allowed-Origins { "\${distro_id}:\${distro_codename}-security"; };
Unattended-Upgrade::Automatic-Reboot "false";
Unattended-Upgrade::Remove-Unused-Kernel-Packages "true";
TEXT
if [ $value = 1 ]; then
    systemctl enable --quiet apt-daily.timer apt-daily-upgrade.timer unattended-upgrades.service
else
    systemctl disable --quiet apt-daily.timer apt-daily-upgrade.timer unattended-upgrades.service
fi

# Ubuntu 24.04's needrestart restarts services whose libraries were replaced.
install -d /etc/needrestart/conf.d
cat >/etc/needrestart/conf.d/relay.conf <<'TEXT'
$nrconf{override_rc}{qr(^relay)} = 0;
$nrconf{override_rc}{qr(^haproxy)} = 0;
TEXT
