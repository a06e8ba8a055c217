"""What an image of relay and one of HAProxy have in common: the service, its health, the bytes, and what listens."""

from __future__ import annotations

import pytest
from testinfra.host import Host

from tests.image.checks.proxies import NAME, PORTS, Proxy, sh

pytestmark = [pytest.mark.image, pytest.mark.timeout(600)]


def test_its_unit_is_enabled_and_up(proxy: Proxy) -> None:
    assert sh(proxy.host, f"systemctl is-enabled {proxy.unit}").strip() == "enabled"
    assert (proxy.show("ActiveState"), proxy.show("SubState")) == ("active", "running")


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/healthz"])
def test_health_is_200(proxy: Proxy, path: str) -> None:
    assert proxy.status(path) == 200


def test_application_health_gets_its_state(proxy: Proxy) -> None:
    assert '"ApplicationHealthState": "Healthy"' in sh(proxy.host, "curl --silent http://127.0.0.1:8080/healthz")


@pytest.mark.parametrize("port", PORTS)
def test_tls_passes_through(proxy: Proxy, port: int) -> None:
    """The client verifies the hub's own certificate by its name."""
    found = proxy.talk(port)
    assert found["echo"]
    assert found["tls"] == "TLSv1.3"
    assert ["DNS", NAME] in found["peer"]["subjectAltName"]


def test_nothing_else_listens(proxy: Proxy, host: Host, building: bool) -> None:
    """CIS 2.1.22."""
    found = {line.split()[3].replace("*:", "[::]:") for line in sh(host, "ss -Hltn").splitlines()}
    # A resolver on loopback where the system's own is in use; SSH while the image is baked.
    allowed = {"127.0.0.53%lo:53", "127.0.0.54:53"} | ({"0.0.0.0:22", "[::]:22"} if building else set())
    assert found - allowed == proxy.listens


def test_only_time_and_leases_are_listened_for_by_udp(host: Host, proxy: Proxy) -> None:
    found = {line.split()[3] for line in sh(host, "ss -Hlun").splitlines()}
    far = {address for address in found if not address.startswith(("127.", "[::1]"))}
    assert not {address for address in far if not address.endswith((":68", ":546"))}, found


def test_it_carries_as_many_connections_as_relay_s_unit_asks_for(proxy: Proxy, own_kernel: bool) -> None:
    limit = int(sh(proxy.host, f"cat /proc/{proxy.show('MainPID')}/limits | awk '/Max open files/ {{ print $5 }}'"))
    assert proxy.show("LimitNOFILE") == "1048576"
    if own_kernel:
        assert limit == 1048576
    else:
        assert limit > 1024  # the local machine's bound


def test_nothing_has_failed(proxy: Proxy, host: Host) -> None:
    assert proxy.show("Result") == "success"
    assert sh(host, "systemctl --failed --no-legend").strip() == ""
