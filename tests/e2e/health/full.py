"""Settings with which a relay has every metric that there is, and a scrape's names."""

from __future__ import annotations

from pathlib import Path

from relay.supervisor.settings_source import Report, now
from tests.core.hellos import by_openssl
from tests.support.clients import connect
from tests.support.harness import Relay
from tests.support.observe import Metrics
from tests.support.relay_toml import listener, settings
from tests.support.upstreams import Echo

ROUTE = """\
[[listeners.routes]]
name = "r"
sni = ["r.example"]
upstream = ["{name}"]
backup = ["{address}"]
"""
TABLES = """\
[dial]
rate = 1000.0
[azure]
scheduled_events = true
metadata_url = "{url}"
settings_state = "{state}"
"""


def toml(echo: Echo, metadata_url: str, folder: Path) -> str:
    """A limit of a listener, an upstream by name, a route with a backup, a paced dial, Azure's events, a report of
    `relay fetch-settings`, and two customers.
    """
    state = folder / "state.json"
    state.write_bytes(Report(up=True, checked_boot=now()).to_json())
    name = f"localhost:{echo.address[1]}"
    more = "max_connections = 100\n" + ROUTE.format(name=name, address=f"127.0.0.1:{echo.address[1]}")
    text = settings(listener(name, more=more), tables=TABLES.format(url=metadata_url, state=state), checks=0.2)
    text += '[[customers]]\nname = "contoso"\nnetworks = ["127.0.0.1"]\n'
    return text + '[[customers]]\nname = "small"\nnetworks = ["127.0.0.2"]\nmax_connections = 1\n'


def take_the_route(relay: Relay) -> None:
    """One connection of the route, which has ended when this returns: its outcome is a metric from then on."""
    with connect(relay.address()) as client:
        client.sendall(by_openssl("r.example"))
        assert client.recv(1)
    relay.wait_status(lambda status: status["listeners"][0]["routes"][0]["outcomes"])


def labels(metrics: Metrics) -> dict[str, set[str]]:
    """Every metric, as docs/metrics.md names it, and its labels: a histogram is one, and has no `le`."""
    found: dict[str, set[str]] = {}
    histograms = {name for name, kind in metrics.types.items() if kind == "histogram"}
    for name, pairs in metrics.samples:
        for suffix in ("_bucket", "_sum", "_count"):
            if name.removesuffix(suffix) in histograms:
                name = name.removesuffix(suffix)  # noqa: PLW2901
        found.setdefault(name, set()).update({label for label, _ in pairs} - {"le"})
    return found
