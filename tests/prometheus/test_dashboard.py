"""Grafana's dashboard, deploy/grafana/relay.json: its form, and each query in a real Prometheus over a real relay.

Grafana itself is not here: that it draws the panels is not tested.
"""

from __future__ import annotations

import json
import re
import shutil
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.health.full import toml
from tests.prometheus.server import prometheus
from tests.support.clients import echoes
from tests.support.harness import Relay
from tests.support.metadata_server import MetadataServer
from tests.support.observe import wait_until
from tests.support.programs import ROOT, START
from tests.support.relay_toml import listener
from tests.support.upstreams import Echo, refusing

DASHBOARD = ROOT / "deploy/grafana/relay.json"
SHOWN: dict[str, Any] = json.loads(DASHBOARD.read_text())
PANELS: list[dict[str, Any]] = [panel for panel in SHOWN["panels"] if panel["type"] != "row"]
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
# What Grafana puts in place of its variables; a rate needs two scrapes, which come every half second here.
VARIABLES = {"$__rate_interval": "1m", "$instance": ".*"}


def queries() -> list[tuple[str, str]]:
    """Title and expression of every query."""
    return [(panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]]


def test_panels_have_a_place_of_their_own_and_say_what_they_show() -> None:
    assert len({panel["id"] for panel in SHOWN["panels"]}) == len(SHOWN["panels"])
    assert len({panel["title"] for panel in PANELS}) == len(PANELS) > 20
    for panel in PANELS:
        assert panel["description"], panel["title"]
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, panel["title"]
    for one, other in combinations(SHOWN["panels"], 2):
        a, b = one["gridPos"], other["gridPos"]
        beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        above = a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
        assert beside or above, (one["title"], other["title"])


def test_it_belongs_to_no_data_source_of_its_author() -> None:
    for panel in PANELS:
        assert panel["datasource"] == DATASOURCE, panel["title"]
        assert [target["datasource"] for target in panel["targets"]] == [DATASOURCE] * len(panel["targets"])
    names = {variable["name"] for variable in SHOWN["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", DASHBOARD.read_text()))
    assert used - {"__rate_interval", "__all"} == names


def test_legends_name_labels_that_the_query_keeps() -> None:
    for panel in PANELS:
        for target in panel["targets"]:
            for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
                if kept := re.findall(r"sum by \(([\w, ]+)\)", target["expr"]):
                    assert label in kept[0].split(", "), (panel["title"], target["expr"])


def test_every_metric_is_a_documented_one() -> None:
    documented = set(re.findall(r"`((?:relay|process)_\w+)`", (ROOT / "docs/metrics.md").read_text()))
    for title, query in queries():
        for name in re.findall(r"\b(?:relay|process)_\w+", query):
            assert name.removesuffix("_bucket") in documented, (title, name)


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="no prometheus (make deps installs it)")
def test_every_query_finds_something_in_a_real_prometheus(tmp_path: Path) -> None:
    (tmp_path / "relay").mkdir()
    with Echo() as echo, refusing() as dead, MetadataServer() as metadata:
        settings = toml(echo, metadata.url, tmp_path) + listener(dead, name="dead")
        with (
            Relay(tmp_path / "relay", settings) as relay,
            prometheus(tmp_path / "prometheus", relay) as server,
        ):
            # Both sides of a rate: a scrape before the connections, and one after.
            wait_until(lambda: server.query('relay_connections_total{outcome="ok"} == 0'), START, "a scrape")
            assert echoes(relay.address())
            with pytest.raises(ConnectionError):
                echoes(relay.address("dead"))
            relay.wait_outcomes({"ok": 1, "dial_refused": 1})
            silent = dict.fromkeys(queries())

            def all_found() -> bool:
                for title, query in list(silent):
                    expression = query
                    for name, value in VARIABLES.items():
                        expression = expression.replace(name, value)
                    if server.query(expression):
                        del silent[title, query]
                return not silent

            wait_until(all_found, START, lambda: f"an answer to {list(silent)}")
            instances = server.query("relay_build_info")
            assert [found["metric"]["instance"] for found in instances] == ["{}:{}".format(*relay.address("admin"))]
