"""The alert rules of deploy/prometheus, by promtool and by a real Prometheus that scrapes a real relay."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.health.full import labels, toml
from tests.e2e.health.verified import verified_upstream, wait_verified
from tests.prometheus.cases import CASES, Series
from tests.prometheus.server import RULES, prometheus
from tests.support.clients import echoes
from tests.support.harness import Relay
from tests.support.metadata_server import MetadataServer
from tests.support.observe import wait_until
from tests.support.programs import ROOT, START
from tests.support.relay_toml import listener, settings
from tests.support.upstreams import Echo, refusing

Json = dict[str, Any]

NAMES = re.findall(r"^ +- alert: (\w+)$", RULES.read_text(), re.MULTILINE)

pytestmark = pytest.mark.skipif(
    shutil.which("promtool") is None or shutil.which("prometheus") is None,
    reason="no promtool and prometheus (make deps installs them)",
)


def promtool(*arguments: str | Path, text: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *map(str, arguments)], input=text, capture_output=True, text=True, timeout=50)


def test_promtool_takes_the_rules() -> None:
    done = promtool("check", "rules", RULES)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(NAMES)} rules found" in done.stdout


def test_every_alert_has_a_severity_and_says_what_to_do() -> None:
    assert len(set(NAMES)) == len(NAMES)
    for rule in RULES.read_text().split("- alert: ")[1:]:
        assert re.search(r"severity: (critical|warning|info)$", rule, re.MULTILINE), rule
        assert "summary: " in rule, rule
        assert "description: " in rule, rule


def test_the_page_has_every_alert_and_no_other() -> None:
    section = (ROOT / "docs/metrics.md").read_text().partition("## What to alert on")[2]
    assert re.findall(r"^\| `(Relay\w+)` \|", section, re.MULTILINE) == NAMES


# --- with series that are made up ------------------------------------------------------------------------------------


def test_every_alert_has_its_series() -> None:
    assert list(CASES) == NAMES


def of_relay(series: Series) -> list[Json]:
    """With the labels that a scrape adds."""
    found = []
    for text, values in series.items():
        name, _, rest = text.rstrip("}").partition("{")
        matchers = [rest] if rest else []
        matchers += ['instance="a:1"'] if "job=" in rest else ['job="relay"', 'instance="a:1"']
        found.append({"series": f"{name}{{{','.join(matchers)}}}", "values": values})
    return found


@pytest.mark.parametrize("name", NAMES)
def test_it_fires_when_it_should_and_not_when_it_should_not(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    tests = []
    for expected, series in ((1, case.fires), *((0, one) for one in case.silent)):
        given = series if case.absent else {"relay_build_info": "1x100", **series}
        firing = f'count(ALERTS{{alertname="{name}",alertstate="firing"}}) or vector(0)'
        tests.append(
            {
                "interval": "1m",
                "input_series": of_relay(given),
                "promql_expr_test": [
                    {
                        "expr": firing,
                        "eval_time": f"{case.minute}m",
                        "exp_samples": [{"labels": "{}", "value": expected}],
                    }
                ],
            }
        )
    document = {"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": tests}
    file = tmp_path / "test.yml"
    file.write_text(json.dumps(document))  # which is YAML
    done = promtool("test", "rules", file)
    assert done.returncode == 0, done.stdout + done.stderr


# --- with a real relay -----------------------------------------------------------------------------------------------


@pytest.fixture
def echo() -> Iterator[Echo]:
    with Echo() as server:
        yield server


def test_every_metric_of_the_rules_is_one_that_a_relay_has(tmp_path: Path, echo: Echo) -> None:
    with (
        MetadataServer() as metadata,
        verified_upstream(tmp_path) as (verified, environ),
        Relay(tmp_path, toml(echo, metadata.url, tmp_path) + verified, environ=environ) as relay,
    ):
        assert echoes(relay.address())
        wait_verified(relay)
        relay.wait_status(lambda status: status["scheduled_events"]["ok"] and status["settings_source"])
        code, text = relay.get("/metrics")
        assert code == 200
        found = labels(relay.metrics())
        done = promtool("check", "metrics", text=text)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    expressions = "\n".join(line for line in RULES.read_text().splitlines() if not line.lstrip().startswith("#"))
    used = set(re.findall(r"\b(?:relay|process)_\w+", expressions))
    assert len(used) > 20
    assert used <= found.keys(), used - found.keys()
    for name, matchers in re.findall(r"\b(relay_\w+)\{([^}]*)\}", expressions):
        assert set(re.findall(r"(\w+)=", matchers)) <= found[name], name


THRESHOLD = re.compile(r"(.*?)\s*(>|<|==)\s*[0-9.]+", re.DOTALL)


def test_a_real_prometheus_scrapes_a_real_relay_and_every_expression_has_something_to_compare(
    tmp_path: Path, echo: Echo
) -> None:
    """An expression whose two sides have different labels is as quiet as one that finds nothing wrong."""
    (tmp_path / "relay").mkdir()
    with (
        MetadataServer() as metadata,
        verified_upstream(tmp_path) as (verified, environ),
        Relay(tmp_path / "relay", toml(echo, metadata.url, tmp_path) + verified, environ=environ) as relay,
        prometheus(tmp_path / "prometheus", relay) as server,
    ):
        wait_until(lambda: server.query("relay_connections_accepted_total == 0"), START, "a scrape")
        wait_until(lambda: server.query("relay_settings_source_up == 1"), START, "a report that was read")
        assert echoes(relay.address())
        wait_until(lambda: server.query("relay_upstream_certificate_expiry_seconds"), START, "a handshake")
        wait_until(lambda: server.query("rate(relay_connections_accepted_total[5m]) > 0"), START, "another scrape")
        wait_until(
            lambda: {rule["health"] for rule in server.rules().values()} == {"ok"}, START,
            lambda: f"rules evaluated: {server.rules()}",
        )  # fmt: skip
        rules = server.rules()
        assert list(rules) == NAMES
        for name, rule in rules.items():
            for part in rule["query"].split(" or "):
                match = THRESHOLD.fullmatch(part)
                assert match, part
                if name != "RelayAbsent":
                    assert server.query(match[1]), (name, match[1])
        assert server.firing() == {}, "nothing is wrong with it"


def test_a_real_prometheus_fires_for_an_upstream_that_is_down_and_a_reload_that_fails(
    tmp_path: Path,
) -> None:
    (tmp_path / "relay").mkdir()
    with refusing() as dead:
        relay = Relay(tmp_path / "relay", settings(listener(dead), checks=0.1), ready=False)
        relay.expected_errors.add("reload failed")
        at_once = {"RelayUpstreamDown", "RelayUpstreamAddressDown"}
        with relay, prometheus(tmp_path / "prometheus", relay, at_once) as server:
            wait_until(lambda: server.query("relay_reloads_total"), START, "a scrape")
            relay.config.write_text("workers = [")
            assert relay.post("/reload")[0] == 409
            expected = {*at_once, "RelayReloadFailed"}
            firing = wait_until(
                lambda: found if (found := server.firing()).keys() >= expected else None, START,
                lambda: f"{expected} firing: {list(server.firing())}",
            )  # fmt: skip
            assert firing is not None
            assert firing.keys() == expected
            for alert in firing.values():
                texts = alert["annotations"].values()
                assert not [text for text in texts if "error expanding" in text or "no value" in text], alert
            summary = firing["RelayUpstreamDown"]["annotations"]["summary"]
            assert summary == "{}:{} reaches no address of {}:{}".format(*relay.address("admin"), *dead)
            relay.config.write_text(settings(listener(dead), checks=0.1))
