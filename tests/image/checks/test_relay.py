"""relay on a machine that was made of its image."""

from __future__ import annotations

import json
import re

import pytest
from testinfra.host import Host

from tests.image.checks.proxies import SETTINGS, Proxy, Standin, sh, wait, write

pytestmark = [pytest.mark.image, pytest.mark.timeout(600)]


def test_it_is_the_package_s_and_unchanged(host: Host) -> None:
    """dpkg's sums; the settings are a file of the configuration that the image goes without."""
    changed = host.run("dpkg --verify relay").stdout.splitlines()
    assert [line for line in changed if not line.endswith(" c /etc/relay/relay.toml")] == []
    status = sh(host, "dpkg-query --show --showformat '${Version}' relay")
    assert sh(host, "relay --version").split()[1] == status.replace("~", "")


@pytest.mark.parametrize("unit", ["relay-settings.service", "relay-settings.timer"])
def test_its_settings_come_from_user_data(host: Host, unit: str) -> None:
    if not host.file(f"/usr/lib/systemd/system/{unit}").exists:
        pytest.skip("this version of relay has no settings from user data")
    assert sh(host, f"systemctl is-enabled {unit}").strip() == "enabled"


def test_its_sandbox_is_at_2_0_or_better(proxy: Proxy) -> None:
    said = sh(proxy.host, f"systemd-analyze security --no-pager {proxy.unit} | tail -n 1")
    found = re.search(r"exposure level for relay\.service: (\d+\.\d)", said)
    assert found, said
    assert float(found[1]) <= 2.0


def test_none_of_its_processes_is_root(proxy: Proxy) -> None:
    uids = sh(
        proxy.host, f"ps --no-headers -o uid --ppid {proxy.show('MainPID')} --pid {proxy.show('MainPID')}"
    ).split()
    assert len(uids) >= 2
    assert "0" not in uids


def test_it_has_the_ring_on_the_image_s_own_kernel_and_says_why_not_elsewhere(proxy: Proxy, own_kernel: bool) -> None:
    status = json.loads(sh(proxy.host, "curl --silent http://127.0.0.1:8414/status"))
    assert status["engine"] in (("ring",) if own_kernel else ("ring", "stream")), status["engine_reason"]
    assert status["engine_reason"]


def test_the_access_log_is_in_the_journal_with_priorities(proxy: Proxy) -> None:
    proxy.talk(8883)

    def lines() -> list[dict[str, str]]:
        return [entry for entry in proxy.entries() if '"event": "connection"' in entry.get("MESSAGE", "")]

    wait(lambda: any('"listener": "mqtt"' in line["MESSAGE"] for line in lines()), proxy.journal)
    for line in lines():
        assert line["PRIORITY"] == "6"
        assert json.loads(line["MESSAGE"])["outcome"]


def test_a_reload_puts_settings_into_effect(proxy: Proxy, hub: Standin) -> None:
    pid = proxy.show("MainPID")
    write(proxy.host, "/etc/relay/relay.toml", f"{SETTINGS.format(hub=hub.address)}[limits]\nmax_connections = 123\n")
    sh(proxy.host, f"systemctl reload {proxy.unit}")
    limit = "curl --silent http://127.0.0.1:8414/metrics | grep '^relay_connections_limit '"
    wait(lambda: proxy.host.run(limit).stdout.split()[-1:] == ["123.0"])
    assert proxy.show("MainPID") == pid
    write(proxy.host, "/etc/relay/relay.toml", "upstreams = 1\n")
    assert proxy.host.run(f"systemctl reload {proxy.unit}").rc != 0
    assert proxy.talk(443)["echo"]
    proxy.configure(hub.address)
    sh(proxy.host, f"systemctl reload {proxy.unit}")


def test_a_stop_announces_itself_and_closes_connections_one_by_one(proxy: Proxy) -> None:
    held = proxy.hold(8883, 12)
    try:
        sh(proxy.host, f"systemctl stop --no-block {proxy.unit}")
        wait(lambda: proxy.status("/readyz") == 503)
        assert proxy.status("/healthz") == 200
        ended = held.ended()
        # Twelve over six seconds; all at once would be a drain that nothing paces.
        assert ended[-1][0] - ended[0][0] > 3.0
        wait(lambda: proxy.show("ActiveState") == "inactive")
        assert proxy.show("Result") == "success"
        last = [line for line in proxy.journal().splitlines() if '"event": "stopped"' in line][-1]
        assert json.loads(last)["outcomes"]["drained"] == 12, last
    finally:
        proxy.restart()
