"""For each alert of deploy/prometheus/relay.rules.yml: series with which it fires, and series with which it does not.

Series are in promtool's notation, a value a minute, "0+1x30": from 0 on one more each minute, thirty times. Those
without a job get the job relay.
"""

from __future__ import annotations

from typing import NamedTuple

Series = dict[str, str]


class Case(NamedTuple):
    """One alert. `minute` is when it is looked at."""

    fires: Series
    silent: tuple[Series, ...]
    minute: int = 20
    absent: bool = False  # about what is not there: no other series is added


def workers(ready: str, draining: str = "0x30") -> Series:
    return {
        'relay_worker_connections_limit{worker="0"}': "1000x30",
        'relay_worker_connections_limit{worker="1"}': "1000x30",
        "relay_workers": ready,
        "relay_draining": draining,
    }


def ended(outcome: str, values: str) -> Series:
    return {f'relay_connections_total{{listener="mqtt",outcome="{outcome}"}}': values}


def failing(failed: str, accepted: str, outcome: str = "dial_refused") -> Series:
    return {**ended(outcome, failed), 'relay_connections_accepted_total{listener="mqtt"}': accepted}


def beside(use: str, limit: str, labels: str, used: str) -> Series:
    """A use, and a limit of a hundred."""
    return {f"{use}{labels}": used, f"{limit}{labels}": "100x100"}


DAY = 86_400
CERTIFICATE = 'relay_upstream_certificate_expiry_seconds{upstream="hub:8883"}'  # promtool's clock begins at 0

CASES = {
    "RelayDown": Case({"up": "1x9 0x20"}, ({"up": "1x30"}, {"up": "1x19 0 1"}, {"up": "1x19 _ _"})),
    "RelayAbsent": Case({'up{job="other"}': "1x30"}, ({"relay_build_info": "1x30"},), absent=True),
    "RelayWorkersMissing": Case(
        workers("2x9 1x20"),
        (
            workers("2x30"),
            workers("2x19 1 2"),  # one that is being replaced
            workers("0x30", draining="1x30"),
        ),
    ),
    "RelayWorkersDying": Case(
        {"relay_worker_restarts_total": "0x9 1x3 3x3 5x20"},
        ({"relay_worker_restarts_total": "7x30"}, {"relay_worker_restarts_total": "0x15 1x20"}),
    ),
    "RelayInternalError": Case(ended("internal_error", "0x9 1x20"), (ended("internal_error", "3x30"),)),
    "RelayLoopLag": Case(
        {'relay_loop_lag_seconds{worker="0"}': "0.9x30"},
        (
            {'relay_loop_lag_seconds{worker="0"}': "0.02x30"},
            {'relay_loop_lag_seconds{worker="0"}': "0.02x19 0.9 0.02"},
        ),
    ),
    "RelayDrained": Case(
        {'relay_drain_phase{phase="drained"}': "1x100"},
        (
            {'relay_drain_phase{phase="drained"}': "0x50 1x50"},
            {'relay_drain_phase{phase="serving"}': "1x100", 'relay_drain_phase{phase="drained"}': "0x100"},
        ),
        minute=90,
    ),
    "RelayReloadFailed": Case(
        {'relay_reloads_total{result="failed"}': "0x9 1x20"},
        (
            {'relay_reloads_total{result="failed"}': "4x30"},
            {'relay_reloads_total{result="failed"}': "0x30", 'relay_reloads_total{result="ok"}': "0+1x30"},
        ),
    ),
    "RelayLogLinesDropped": Case(
        {"relay_log_lines_dropped_total": "0x17 9x9"}, ({"relay_log_lines_dropped_total": "9x30"},)
    ),
    "RelayScheduledEventsDown": Case(
        {"relay_scheduled_events_up": "1x3 0x30"},
        ({"relay_scheduled_events_up": "1x30"}, {"relay_scheduled_events_up": "1x15 0x15"}),
    ),
    "RelaySettingsSourceDown": Case(
        {"relay_settings_source_up": "1x3 0x30"},
        ({"relay_settings_source_up": "1x30"}, {"relay_settings_source_up": "1x15 0x15"}),
    ),
    "RelayLimitReached": Case(
        ended("refused_capacity", "0+3x30"),
        (
            ended("refused_instance", "40x30"),
            ended("dial_queue_full", "0x18 1x10"),  # once, just now
            ended("refused_access", "0+500x30"),  # scanners, for ever
            ended("refused_sni", "0+500x30"),
            ended("refused_source", "0+500x30"),
        ),
    ),
    "RelaySourceRefused": Case(
        ended("refused_source_rate", "0+600x30"),
        (ended("refused_source_rate", "0+30x30"), ended("refused_access", "0+600x30")),
        minute=25,
    ),
    "RelayConnectionsNearLimit": Case(
        {
            'relay_connections_active{listener="mqtt"}': "45x30",
            'relay_connections_active{listener="amqp"}': "45x30",
            "relay_connections_limit": "100x30",
        },
        ({'relay_connections_active{listener="mqtt"}': "70x30", "relay_connections_limit": "100x30"},),
    ),
    "RelayListenerNearLimit": Case(
        beside("relay_connections_active", "relay_listener_connections_limit", '{listener="mqtt"}', "90x30"),
        (
            beside("relay_connections_active", "relay_listener_connections_limit", '{listener="mqtt"}', "70x30"),
            {'relay_connections_active{listener="mqtt"}': "900x30"},  # has none
        ),
    ),
    "RelayWorkerNearLimit": Case(
        beside("relay_worker_connections_active", "relay_worker_connections_limit", '{worker="1"}', "95x30"),
        (beside("relay_worker_connections_active", "relay_worker_connections_limit", '{worker="1"}', "85x30"),),
    ),
    "RelaySourcePortsNearLimit": Case(
        beside("relay_source_ports_in_use", "relay_source_ports_limit", '{source="any",upstream="hub:8883"}', "90x30"),
        (
            beside(
                "relay_source_ports_in_use", "relay_source_ports_limit", '{source="any",upstream="hub:8883"}', "70x30"
            ),
        ),
    ),
    "RelayDialQueue": Case(
        {"relay_dial_queue": "7x30"}, ({"relay_dial_queue": "0x30"}, {"relay_dial_queue": "0x18 7 0"})
    ),
    "RelayHeldBytesNearLimit": Case(
        beside("relay_held_bytes", "relay_held_bytes_limit", '{worker="0"}', "99x30"),
        (
            beside("relay_held_bytes", "relay_held_bytes_limit", '{worker="0"}', "50x30"),
            {'relay_held_bytes{worker="0"}': "99999999x30"},
        ),
    ),
    "RelayAcceptPauses": Case({"relay_accept_pauses_total": "0x17 2x9"}, ({"relay_accept_pauses_total": "8x30"},)),
    "RelaySlotsNearLimit": Case(
        beside("relay_upstream_slots_in_use", "relay_upstream_slots_limit", "", "95x30"),
        (
            beside("relay_upstream_slots_in_use", "relay_upstream_slots_limit", "", "20x30"),
            beside("relay_listener_slots_in_use", "relay_listener_slots_limit", "", "90x30"),
            beside("relay_route_slots_in_use", "relay_route_slots_limit", "", "90x30"),
        ),
    ),
    "RelayUpstreamDown": Case(
        {'relay_upstream_up{upstream="hub:8883"}': "1x9 0x20"},
        (
            {'relay_upstream_up{upstream="hub:8883"}': "1x30"},
            {'relay_upstream_up{upstream="hub:8883"}': "1x19 0 1"},
        ),
    ),
    "RelayRouteOnBackup": Case(
        {'relay_route_backup{listener="mqtt",route="dps"}': "0x9 1x30"},
        (
            {'relay_route_backup{listener="mqtt",route="dps"}': "0x40"},
            {'relay_route_backup{listener="mqtt",route="dps"}': "0x20 1x3 0x20"},
        ),
    ),
    "RelayUpstreamAddressDown": Case(
        {'relay_upstream_address_up{upstream="hub:8883",address="10.0.0.4:8883"}': "0x100"},
        (
            {'relay_upstream_address_up{upstream="hub:8883",address="10.0.0.4:8883"}': "1x50 0x50"},
            {'relay_upstream_address_up{upstream="hub:8883",address="10.0.0.4:8883"}': "1x100"},
        ),
        minute=90,
    ),
    "RelayUpstreamCertificateExpires": Case(
        {CERTIFICATE: f"{6 * DAY}x200"},
        ({CERTIFICATE: f"{8 * DAY}x200"}, {CERTIFICATE: f"{6 * DAY}x80 {60 * DAY}x100"}),
        minute=100,
    ),
    "RelayUpstreamFailing": Case(
        failing("0+10x30", "0+100x30"),
        (
            failing("0+1x30", "0+100x30"),
            failing("0+10x30", "0+100x30", "upstream_reset"),
            failing("0+10x30", "0+100x30", "dial_queue_full"),  # an alert of its own
            failing("0x30", "0x30"),  # nobody came
        ),
    ),
    "RelayNameUnresolved": Case(
        {'relay_dns_answer_age_seconds{name="hub.example"}': "0+60x30"},
        ({'relay_dns_answer_age_seconds{name="hub.example"}': "290x30"},),
    ),
}
