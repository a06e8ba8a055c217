"""dial.source_addresses in a network namespace of its own with few local ports: spread, counted, refused in time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.support.namespace import inside, needs_namespace

PORTS = 50


def few_ports(directory: Path, engine: str, scenario: str) -> dict[str, Any]:
    """Run a scenario of `few_ports` in a namespace where the kernel has PORTS local ports to choose from."""
    prepare = (
        "ip address add 192.0.2.1/32 dev lo && ip address add 192.0.2.2/32 dev lo && "
        f"echo 40000 {40000 + PORTS - 1} > /proc/sys/net/ipv4/ip_local_port_range && "
        # The test's own requests to the admin port would use up the ports otherwise.
        "echo 0 > /proc/sys/net/ipv4/tcp_max_tw_buckets"
    )
    printed = inside("tests.e2e.upstreams.few_ports", scenario, directory, engine, prepare=prepare)
    found: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return found


@needs_namespace
def test_two_sources_have_twice_the_ports_and_then_it_is_refused(tmp_path: Path, engine: str) -> None:
    found = few_ports(tmp_path, engine, "two")
    assert found["limit"] == {"192.0.2.1": PORTS - 1, "192.0.2.2": PORTS - 1}
    assert found["in_use"] == found["limit"]
    assert found["served"] == 2 * (PORTS - 1)
    assert found["sources"] == {"192.0.2.1": PORTS - 1, "192.0.2.2": PORTS - 1}, "what the upstream saw"
    assert found["outcomes"] == {"no_source_port": 10, "ok": 2 * (PORTS - 1) + 1}
    assert found["after"] == {"192.0.2.1": 0, "192.0.2.2": 0}


@needs_namespace
def test_ports_that_others_hold_are_found_out(tmp_path: Path, engine: str) -> None:
    """The kernel says so, the other source serves, and when that is full as well it is refused."""
    found = few_ports(tmp_path, engine, "taken")
    assert found["sources"] == {"192.0.2.2": PORTS - 1}
    assert set(found["outcomes"]) == {"no_source_port", "ok"}


@needs_namespace
def test_without_sources_the_kernel_s_choice_is_counted(tmp_path: Path, engine: str) -> None:
    found = few_ports(tmp_path, engine, "none")
    assert found["limit"] == {"any": PORTS - 1}
    assert found["served"] == PORTS - 1
    assert found["outcomes"] == {"no_source_port": 10, "ok": PORTS - 1}
