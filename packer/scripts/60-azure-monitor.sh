#!/usr/bin/env bash
# What the Azure Monitor Agent reads. The agent itself is an extension of the scale set's model, and no part of the image:
# it reads syslog or files, and not the journal.
#
#     AZURE_MONITOR=off (default)
#     AZURE_MONITOR=rsyslog    the journal goes on to rsyslog: a data collection rule of kind Syslog, facility daemon,
#                              takes relay's lines from there; they are in /var/log/syslog too, which logrotate bounds
#     AZURE_MONITOR=file       rsyslog writes relay's access log to /var/log/relay/access.json, one JSON object a line:
#                              a data collection rule of kind JSON file, into a table that exists beforehand
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1
mode=${AZURE_MONITOR:-off}
journal=/etc/systemd/journald.conf.d/zz-relay-azure-monitor.conf
rules=/etc/rsyslog.d/10-relay-azure-monitor.conf
rotation=/etc/logrotate.d/relay-azure-monitor

case $mode in
off)
    rm -f $journal $rules $rotation
    exit 0
    ;;
rsyslog | file) ;;
*)
    echo "error: AZURE_MONITOR is '$mode', and has to be off, rsyslog or file" >&2
    exit 1
    ;;
esac

apt-get --yes --quiet --no-install-recommends --option DPkg::Lock::Timeout=600 --option Dpkg::Use-Pty=0 \
    install rsyslog logrotate
install -d "$(dirname $journal)" /etc/rsyslog.d
printf '[Journal]\nForwardToSyslog=yes\n' >$journal
if [ "$mode" = file ]; then
    install -d -o syslog -g adm -m 750 /var/log/relay
    cat >$rules <<'TEXT'
template(name="relay-message" type="string" string="%msg:::drop-last-lf%\n")
if $programname == "relay" and $msg contains '"event": "connection"' then {
    action(type="omfile" file="/var/log/relay/access.json" template="relay-message" fileCreateMode="0640"
           fileOwner="syslog" fileGroup="adm")
}
if $programname == "relay" then stop
TEXT
    # A line has some 400 bytes: 5 GB at most.
    cat >$rotation <<'TEXT'
/var/log/relay/access.json {
    size 1G
    rotate 4
    missingok
    notifempty
    compress
    delaycompress
    postrotate
        /usr/lib/rsyslog/rsyslog-rotate
    endscript
}
TEXT
else
    rm -f $rules $rotation
fi
rsyslogd -N 1 -f /etc/rsyslog.conf
systemctl enable --quiet rsyslog.service
