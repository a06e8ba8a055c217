"""A real Prometheus on loopback that scrapes a relay and evaluates the alert rules, several times a second."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.harness import Relay
from tests.support.observe import wait_until
from tests.support.programs import ROOT, START, free_port, launched

Json = dict[str, Any]

RULES = ROOT / "deploy/prometheus/relay.rules.yml"


class Prometheus:
    """What it answers."""

    def __init__(self, port: int) -> None:
        self._port = port

    def get(self, path: str, **query: str) -> Json:
        url = f"http://127.0.0.1:{self._port}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            found: Json = json.load(answer)
        assert found["status"] == "success"
        data: Json = found["data"]
        return data

    def ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/-/ready", timeout=10) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def query(self, expression: str) -> list[Json]:
        found: list[Json] = self.get("query", query=expression)["result"]
        return found

    def rules(self) -> dict[str, Json]:
        (group,) = self.get("rules")["groups"]
        return {rule["name"]: rule for rule in group["rules"]}

    def firing(self) -> dict[str, Json]:
        return {
            alert["labels"]["alertname"]: alert for alert in self.get("alerts")["alerts"] if alert["state"] == "firing"
        }


@contextmanager
def prometheus(directory: Path, relay: Relay, at_once: Collection[str] = ()) -> Iterator[Prometheus]:
    """Scrapes that relay. Alerts named in `at_once` do not wait for their `for`; all others, as on a busy machine a
    scrape may be missed, do.
    """
    directory.mkdir()
    rules, config, port = directory / "relay.rules.yml", directory / "prometheus.yml", free_port()
    head, *alerts = re.split(r"^(?= +- alert: )", RULES.read_text(), flags=re.MULTILINE)
    for number, text in enumerate(alerts):
        if text.split()[2] in at_once:
            alerts[number], count = re.subn(r"( +for): \w+\n", r"\1: 0s\n", text)
            assert count == 1, text
    rules.write_text(head + "".join(alerts))
    target = "{}:{}".format(*relay.address("admin"))
    config.write_text(
        json.dumps(
            {
                "global": {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "500ms"},
                "rule_files": [rules.name],
                "scrape_configs": [{"job_name": "relay", "static_configs": [{"targets": [target]}]}],
            }
        )
    )
    line = ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={directory / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"]  # fmt: skip
    program = shutil.which("prometheus")
    assert program is not None
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            launched([program, *line[1:]]), cwd=directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        try:
            found = Prometheus(port)
            wait_until(found.ready, START, lambda: f"Prometheus ready: {(directory / 'log').read_text()[-2000:]}")
            yield found
        finally:
            process.kill()
            process.wait()
