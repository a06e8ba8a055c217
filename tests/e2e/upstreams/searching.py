"""Runs in a namespace that has a resolv.conf of its own, for test_search_list.py: a relay, a search domain gone bad.

python -m tests.e2e.upstreams.searching SCENARIO DIRECTORY ENGINE
"""

from __future__ import annotations

import sys
from pathlib import Path

import dns.rcode

from tests.support.clients import echoes
from tests.support.harness import Json, Relay
from tests.support.name_server import NameServer
from tests.support.observe import wait_until
from tests.support.relay_toml import listener, settings
from tests.support.upstreams import Echo

HUB = "hub.azure.test"
BELOW = f"{HUB}.corp.test"


def main() -> None:
    scenario, directory, engine = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    ndots = 5 if scenario in ("failing", "empty", "dot") else 1
    Path("/etc/resolv.conf").write_text(f"search corp.test\nnameserver 127.0.0.1\noptions ndots:{ndots}\n")
    server = NameServer(port=53)
    server.zone[HUB, "A"] = (1, ["127.0.0.1"])
    if scenario == "failing":
        server.zone[BELOW, "A"] = server.zone[BELOW, "AAAA"] = dns.rcode.SERVFAIL
    elif scenario == "empty":
        server.zone[BELOW, "TXT"] = (1, ["a wildcard of another type"])
    elif scenario == "family":
        server.zone[HUB, "AAAA"] = dns.rcode.NXDOMAIN
        server.zone[BELOW, "AAAA"] = (1, ["::1"])
    else:
        server.zone[BELOW, "A"] = (1, ["127.0.0.66"])
    dot = "." if scenario == "dot" else ""
    with Echo() as echo:
        toml = settings(listener(f"{HUB}{dot}:{echo.address[1]}"), tables="[dns]\nmin_ttl = 1.0\n")
        with Relay(directory, toml, environ={"RELAY_ENGINE": engine, "RELAY_DRAIN__ANNOUNCE": "0.0"}) as relay:
            assert echoes(relay.address())
            name = f"{HUB}:{echo.address[1]}"
            for _ in range(3):  # as it is asked again
                another_look_up(server)
            shown(relay, name, echo.address[1])
            if scenario in ("wildcard", "dot"):
                for kind in ("A", "AAAA"):
                    server.zone.pop((HUB, kind), None)
                (line,) = wait_until(lambda: held(relay), what="held") or []
                assert line["error"] == f"{HUB} does not exist", line
                assert line["name"] == HUB
            assert echoes(relay.address())
            shown(relay, name, echo.address[1])
            assert {line["upstream"] for line in relay.access(2)} == {name}
    server.close()


def another_look_up(server: NameServer) -> None:
    asked = server.asked[HUB, "A"]
    wait_until(lambda: server.asked[HUB, "A"] > asked, what="another look-up")


def held(relay: Relay) -> list[Json]:
    return [line for line in relay.log_lines() if line["event"].startswith("cannot resolve; serving the last good")]


def shown(relay: Relay, name: str, port: int) -> None:
    """Everything shows the name without its dot, and the one address that it has."""
    (upstream,) = relay.status()["upstreams"]
    assert upstream["name"] == name
    assert [one["address"] for one in upstream["addresses"]] == [f"127.0.0.1:{port}"]
    assert relay.metrics().value("relay_upstream_address_up", upstream=name, address=f"127.0.0.1:{port}") == 1
    assert relay.metrics().value("relay_dns_answer_age_seconds", name=HUB) >= 0


if __name__ == "__main__":
    main()
