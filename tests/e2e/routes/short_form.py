"""Runs the short form in a network namespace, with a hub in a neighbouring one, for test_short_form.

    python -m tests.e2e.routes.short_form DIRECTORY ENGINE

Exit status 0 if the short form's implied route was off and on as the name of the hub's devices was.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.core.hellos import by_openssl
from tests.e2e.routes.places import DEVICE, DPS, HUB
from tests.support.clients import connect, receive
from tests.support.dns_server import NameServer
from tests.support.harness import Relay
from tests.support.namespace import in_network_of
from tests.support.observe import wait_until
from tests.support.upstreams import Echo

ADDRESSES = {HUB: "10.9.0.2", DEVICE: "10.9.0.3", DPS: "10.9.0.4"}
PORTS = (443, 8883, 5671)
SETTINGS = f"""\
upstream = ["{HUB}"]
workers = 2
[[routes]]
name = "dps"
sni = ["{DPS}"]
upstream = ["{DPS}"]
listeners = ["mqtt", "https"]
[admin]
bind = "127.0.0.1:0"
[health]
bind = "127.0.0.1:0"
[health_check]
interval = 0.5
"""


@contextlib.contextmanager
def neighbour() -> Iterator[int]:
    """A process in a namespace of its own, which has ADDRESSES and is joined to this one; its process number."""
    with subprocess.Popen(["unshare", "--net", "sleep", "60"]) as other:
        here = Path("/proc/self/ns/net").readlink()
        wait_until(lambda: Path(f"/proc/{other.pid}/ns/net").readlink() != here, what="the other namespace")
        there = ["nsenter", "--target", str(other.pid), "--net"]
        lines = [
            ["ip", "link", "add", "near", "type", "veth", "peer", "name", "far", "netns", str(other.pid)],
            ["ip", "address", "add", "10.9.0.1/24", "dev", "near"],
            ["ip", "link", "set", "near", "up"],
            *([*there, "ip", "address", "add", f"{address}/24", "dev", "far"] for address in ADDRESSES.values()),
            [*there, "ip", "link", "set", "far", "up"],
        ]
        for line in lines:
            subprocess.run(line, check=True)
        try:
            yield other.pid
        finally:
            other.kill()


def led_to(relay: Relay, listener: str, sent: bytes) -> tuple[str, str]:
    """Address and route of a connection that sends this and has it back."""
    with connect(("127.0.0.1", relay.address(listener)[1])) as client:
        client.sendall(sent)
        assert receive(client, len(sent)) == sent
        name = "{}:{}".format(*client.getsockname())
    # The kernel may use a client's port again towards another listener.
    seen = wait_until(
        lambda: [x for x in relay.events("connection") if (x["client"], x["listener"]) == (name, listener)],
        what=f"the line of {name}",
    )
    return seen[-1]["address"], seen[-1]["route"]


def about_devices(relay: Relay) -> list[str]:
    """The samples of /metrics and the reason of /readyz that name the devices' route or host."""
    lines = [line for line in relay.get("/metrics")[1].splitlines() if ".device" in line and not line.startswith("#")]
    return [*lines, *(line for line in relay.get("/readyz")[1].splitlines() if ".device" in line)]


def main() -> None:
    directory, engine = Path(sys.argv[1]), sys.argv[2]
    with contextlib.ExitStack() as stack:
        pid = stack.enter_context(neighbour())
        echoes = {
            (name, port): stack.enter_context(in_network_of(pid, lambda at=(host, port): Echo(*at)))  # type: ignore[misc]
            for name, host in ADDRESSES.items()
            for port in PORTS
        }
        names = stack.enter_context(NameServer({HUB: [ADDRESSES[HUB]], DPS: [ADDRESSES[DPS]]}, ttl=1))
        toml = SETTINGS + names.table() + "min_ttl = 1.0\nhold = 0.0\n"
        relay = stack.enter_context(Relay(directory, toml, environ={"RELAY_ENGINE": engine}))
        # Off: devices are served by the hub, as if there were no such route, and nothing but one line tells of it.
        (off,) = relay.told("route off: its upstream does not resolve, and the route is optional")
        assert (off["level"], off["route"], off["names"]) == ("info", "myhub.device", [DEVICE])
        assert off["listeners"] == ["https", "mqtt", "amqp"]
        for listener, port in (("https", 443), ("mqtt", 8883), ("amqp", 5671)):
            hub = f"{ADDRESSES[HUB]}:{port}"
            for sent in (by_openssl(DEVICE), by_openssl(HUB), by_openssl(None), b"MQTT"):
                assert (led := led_to(relay, listener, sent)) == (hub, ""), (led, listener, sent)
            dps = (hub, "") if listener == "amqp" else (f"{ADDRESSES[DPS]}:{port}", "dps")
            assert led_to(relay, listener, by_openssl(DPS)) == dps
        assert not (found := about_devices(relay)), found
        before = echoes[HUB, 5671].served
        with connect(("127.0.0.1", 5671)):  # whose only route is off: nothing is waited for
            wait_until(lambda: echoes[HUB, 5671].served > before, what="a silent client connected")
        looked_up = len([name for name in names.queries if name.startswith(DEVICE)])
        wait_until(lambda: len([n for n in names.queries if n.startswith(DEVICE)]) > looked_up, what="another try")
        assert not [echo for (name, _), echo in echoes.items() if name == DEVICE and echo.served], "never checked"
        assert not [line for line in relay.log_lines() if line.get("level") not in ("info", None)]
        # On.
        names.addresses[DEVICE] = [ADDRESSES[DEVICE]]
        relay.told("route on")
        for listener, port in (("https", 443), ("mqtt", 8883), ("amqp", 5671)):
            device = (f"{ADDRESSES[DEVICE]}:{port}", "myhub.device")
            wait_until(lambda: led_to(relay, listener, by_openssl(DEVICE)) == device, what="both workers")  # noqa: B023
            assert led_to(relay, listener, by_openssl(HUB)) == (f"{ADDRESSES[HUB]}:{port}", "")
        assert relay.metrics().value("relay_route_up", listener="mqtt", route="myhub.device") == 1
        assert relay.metrics().value("relay_upstream_up", upstream=f"{DEVICE}:8883") == 1
        # Off again: counters stay.
        del names.addresses[DEVICE]
        relay.told("route off: its upstream does not resolve, and the route is optional", 2)
        wait_until(lambda: led_to(relay, "mqtt", by_openssl(DEVICE))[1] == "", what="both workers")
        assert relay.metrics().value("relay_route_connections_routed_total", listener="mqtt", route="myhub.device") > 0
        assert relay.get("/readyz")[1] == "ok\n"
        shown = [
            line for line in about_devices(relay) if line.startswith(("relay_route_up", "relay_upstream", "relay_dns"))
        ]
        assert shown == []


if __name__ == "__main__":
    main()
