"""docs/metrics.md and a real relay name the same metrics, with the same labels."""

from __future__ import annotations

import re
from pathlib import Path

from tests.e2e.health.full import labels, take_the_route, toml
from tests.e2e.health.verified import verified_upstream, wait_verified
from tests.support.clients import connect, exchange, refused
from tests.support.harness import Start
from tests.support.metadata_server import MetadataServer
from tests.support.programs import ROOT
from tests.support.upstreams import Echo

# Not said by kernels before 6.2.
MAY_BE_MISSING = set() if Path("/proc/self/fd").stat().st_size else {"relay_worker_descriptors_in_use"}


def documented() -> dict[str, set[str]]:
    """Metrics of the page's tables, and their labels."""
    found = {}
    for line in (ROOT / "docs/metrics.md").read_text().splitlines():
        if line.startswith(("| `relay_", "| `process_")):
            names, label_names = line.split(" | ")[:2] if " | | " not in line else (line.split(" | | ")[0], "")
            for name in re.findall(r"`(\w+)`", names):
                assert name not in found, f"{name} is there twice"
                found[name] = set(re.findall(r"`(\w+)`", label_names))
    return found


def test_the_page_has_every_metric_and_its_labels_and_no_other(echo: Echo, start: Start, tmp_path: Path) -> None:
    with MetadataServer() as metadata, verified_upstream(tmp_path) as (verified, environ):
        relay = start(toml(echo, metadata.url, tmp_path) + verified, environ=environ)
        relay.wait_status(lambda status: status["scheduled_events"]["ok"] and status["settings_source"])
        wait_verified(relay)
        take_the_route(relay)
        # A customer's metrics appear with its first connection and its first refusal.
        with connect(relay.address(), "127.0.0.2") as client:
            assert exchange(client) == b"ping"
            assert refused(relay.address(), "127.0.0.2")
            relay.wait_active(1)
            found = labels(relay.metrics())
    page = documented()
    assert {name: page[name] for name in page if name not in MAY_BE_MISSING - found.keys()} == found
