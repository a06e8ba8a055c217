"""HAProxy on a machine that was made of its image."""

from __future__ import annotations

import pytest
from testinfra.host import Host

from tests.image.checks.proxies import FOLDER, NAME, PEERS, Proxy, Standin, sh, wait, write

pytestmark = [pytest.mark.image, pytest.mark.timeout(600)]


def test_it_is_2_8_or_newer_and_its_configuration_is_valid(host: Host) -> None:
    version = sh(host, "haproxy -v").split()[2]
    assert tuple(map(int, version.split(".")[:2])) >= (2, 8)
    sh(host, "HUB=10.199.0.2 haproxy -c -q -f /etc/haproxy/haproxy.cfg")


@pytest.mark.parametrize(
    "environment",
    [
        "MAX_CONNECTIONS_PER_SOURCE=100 CONNECT_RATE_PER_SOURCE=50",
        "ACCEPT_PROXY=1 SEND_PROXY=1 SOURCE_ADDRESS=127.0.0.1",
        "ALLOW=/run/relay-check/allow.lst",
    ],
)
def test_each_of_its_options_is_valid(host: Host, hub: Standin, environment: str) -> None:
    write(host, "/run/relay-check/allow.lst", "192.0.2.0/24\n2001:db8::/32\n")
    sh(host, f"HUB=10.199.0.2 {environment} haproxy -c -q -f /etc/haproxy/haproxy.cfg")


def test_a_source_has_no_more_connections_than_its_limit(proxy: Proxy, hub: Standin) -> None:
    sh(proxy.host, "echo MAX_CONNECTIONS_PER_SOURCE=3 >>/etc/haproxy/relay.env")
    proxy.restart()
    held = proxy.hold(8883, 3)
    assert proxy.host.run(f"python3 {PEERS} talk {NAME} {FOLDER}/cert.pem 443").rc != 0
    held.let_go()
    proxy.configure(hub.address)
    proxy.restart()
    assert proxy.talk(443)["echo"]


def test_its_log_is_in_the_journal_with_priorities(proxy: Proxy) -> None:
    proxy.talk(8883)

    def lines() -> list[dict[str, str]]:
        return [entry for entry in proxy.entries() if "mqtt-in mqtt/hub" in entry.get("MESSAGE", "")]

    wait(lines, proxy.journal)
    assert {line["PRIORITY"] for line in lines()} == {"6"}
    assert not [line for line in lines() if line["MESSAGE"].startswith("<")]


def test_a_reload_keeps_connections(proxy: Proxy) -> None:
    held = proxy.hold(8883, 3)
    sh(proxy.host, f"systemctl reload {proxy.unit}")
    proxy.wait_ready()
    assert proxy.talk(443)["echo"]
    assert "ended" not in held.read()
    held.let_go()


def test_a_stop_announces_itself_and_lets_connections_go_on(proxy: Proxy) -> None:
    """As far as HAProxy can: not ready, still accepting; then no new ones, and those that are there go on."""
    held = proxy.hold(8883, 3)
    try:
        sh(proxy.host, f"systemctl stop --no-block {proxy.unit}")
        wait(lambda: proxy.status("/readyz") == 503)
        assert proxy.talk(443)["echo"]
        wait(lambda: proxy.status("/readyz") == 0)
        assert "ended" not in held.read()
        held.let_go()
        wait(lambda: proxy.show("ActiveState") == "inactive", proxy.journal)
        assert proxy.show("Result") == "success"
    finally:
        proxy.restart()
