#!/usr/bin/env bash
# SSH. A relay's machine needs none: settings come as user data, logs leave by an agent, and a machine that is ill is
# replaced (Azure's serial console and run-command work without it). Nothing is stopped: the connection that bakes the
# image goes on, and the next boot has no SSH. Ubuntu 24.04 listens through ssh.socket, so both units are masked.
#
#     SSH=off (default) | on
set -euo pipefail
units=(ssh.service ssh.socket)

[ -e /usr/lib/systemd/system/ssh.service ] || exit 0
case ${SSH:-off} in
off)
    systemctl disable --quiet "${units[@]}"
    systemctl mask --quiet "${units[@]}"
    ;;
on)
    systemctl unmask --quiet "${units[@]}"
    systemctl enable --quiet ssh.socket
    ;;
*)
    echo "error: SSH is '$SSH', and has to be on or off" >&2
    exit 1
    ;;
esac
