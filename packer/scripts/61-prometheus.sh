#!/usr/bin/env bash
# Prometheus in agent mode: it scrapes relay on loopback, stores nothing, and writes to an Azure Monitor workspace with
# the machine's user-assigned identity. Ubuntu 24.04's Prometheus 2.45 is the first that can.
#
#     PROMETHEUS=off (default) | agent
#     PROMETHEUS_REMOTE_WRITE            the workspace's metrics ingestion endpoint, https://...
#     PROMETHEUS_CLIENT_ID               client id of the identity, which needs Monitoring Metrics Publisher on the
#                                        workspace's default data collection rule
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1
case ${PROMETHEUS:-off} in
off) exit 0 ;;
agent) ;;
*)
    echo "error: PROMETHEUS is '$PROMETHEUS', and has to be off or agent" >&2
    exit 1
    ;;
esac
[[ ${PROMETHEUS_REMOTE_WRITE:-} =~ ^https://[^[:space:]\"]+$ ]] || {
    echo "error: PROMETHEUS_REMOTE_WRITE is '${PROMETHEUS_REMOTE_WRITE:-}', and has to be an https:// URL" >&2
    exit 1
}
[[ ${PROMETHEUS_CLIENT_ID:-} =~ ^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$ ]] || {
    echo "error: PROMETHEUS_CLIENT_ID is '${PROMETHEUS_CLIENT_ID:-}', and has to be a client id (a UUID)" >&2
    exit 1
}

# Started by its package it would keep a database of its own.
if [ -d /run/systemd/system ] && ! [ -e /usr/bin/prometheus ]; then
    systemctl mask --quiet --runtime prometheus.service
fi
apt-get --yes --quiet --no-install-recommends --option DPkg::Lock::Timeout=600 --option Dpkg::Use-Pty=0 \
    install prometheus
if [ -d /run/systemd/system ]; then
    systemctl unmask --quiet --runtime prometheus.service
fi
port=8414
[ "${IMAGE:-relay}" = relay ] || port=8405 # haproxy.cfg's exporter
cat >/etc/prometheus/relay-agent.yml <<TEXT
global:
  scrape_interval: 30s
  external_labels: { host: "\${HOSTNAME}" }
scrape_configs:
  - job_name: ${IMAGE:-relay}
    static_configs: [{ targets: ["127.0.0.1:$port"] }]
remote_write:
  - url: "$PROMETHEUS_REMOTE_WRITE"
    # Each machine scrapes 127.0.0.1: without this, rules that group by instance would mix all machines.
    write_relabel_configs: [{ source_labels: [host], target_label: instance }]
    azuread: { cloud: AzurePublic, managed_identity: { client_id: "$PROMETHEUS_CLIENT_ID" } }
TEXT
promtool check config --agent /etc/prometheus/relay-agent.yml
install -d /etc/systemd/system/prometheus.service.d
cat >/etc/systemd/system/prometheus.service.d/relay.conf <<'TEXT'
[Service]
Environment=HOSTNAME=%H
ExecStart=
ExecStart=/usr/bin/prometheus --enable-feature=agent,expand-external-labels \
    --config.file=/etc/prometheus/relay-agent.yml --storage.agent.path=/var/lib/prometheus/agent \
    --web.listen-address=127.0.0.1:9090
TEXT
systemctl enable --quiet prometheus.service
