"""Alerts, logs and metrics: relay's rules arrive whole, and queries name fields that there are."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from tests.bicep.compiler import Prediction, predict, refusal
from tests.support.programs import ROOT

FLEET = ROOT / "deploy/prometheus/relay-fleet.rules.yml"
RULES = (ROOT / "deploy/prometheus/relay.rules.yml", FLEET)
LOGS = (ROOT / "docs/logs.md").read_text()
METRICS = (ROOT / "docs/metrics.md").read_text()


@pytest.fixture(scope="module")
def made() -> Prediction:
    return predict("production.bicepparam")


def names(made: Prediction, kind: str) -> list[str]:
    return [one["name"] for one in made.all(kind)]


def test_without_monitoring_there_is_none_of_it() -> None:
    bare = predict("minimal.bicepparam")
    assert not [
        one["type"]
        for one in bare.resources
        if one["type"].split("/")[0] in ("Microsoft.Insights", "Microsoft.Monitor")
    ]
    extensions = bare.scale_set["virtualMachineProfile"]["extensionProfile"]["extensions"]
    assert [one["name"] for one in extensions] == ["health"]


def test_alerts_are_there_without_logs_and_metrics() -> None:
    some = predict("uniform.bicepparam")
    assert len(some.all("metricAlerts")) == 3
    assert some.all("accounts") == some.all("dataCollectionRules") == some.all("prometheusRuleGroups") == []


def test_relay_s_own_rules_arrive_whole(made: Prediction) -> None:
    wanted = [rule for file in RULES for rule in yaml.safe_load(file.read_text())["groups"][0]["rules"]]
    groups = [one["properties"] for one in made.all("prometheusRuleGroups")]
    given = [rule for group in groups for rule in group["rules"]]
    assert [rule["alert"] for rule in given] == [rule["alert"] for rule in wanted]
    assert [rule["expression"] for rule in given] == [rule["expr"] for rule in wanted]
    assert [rule["annotations"] for rule in given] == [rule["annotations"] for rule in wanted]
    severities = {"critical": 1, "warning": 2, "info": 3}
    for rule, source in zip(given, wanted, strict=True):
        assert rule["for"] == f"PT{source.get('for', '0m').upper()}"
        assert re.fullmatch(r"PT\d+[HM]", rule["for"])
        assert rule["severity"] == severities[source["labels"]["severity"]]
        assert rule["actions"] == [{"actionGroupId": made.one("actionGroups")["id"]}]
    assert max(len(group["rules"]) for group in groups) <= 20  # Azure's limit
    assert {tuple(group["scopes"]) for group in groups} == {(made.one("accounts")["id"],)}


@pytest.mark.parametrize(
    "what", ["RelayConnectionsNearLimit", "RelaySourcePortsNearLimit", "RelayNameUnresolved", "RelayEvictions"]
)
def test_what_has_to_be_alerted_is(what: str, made: Prediction) -> None:
    assert what in [rule["alert"] for one in made.all("prometheusRuleGroups") for rule in one["properties"]["rules"]]


def test_metrics_of_the_fleet_s_rules_are_relay_s() -> None:
    used = set(re.findall(r"\brelay_\w+", " ".join(re.findall(r"expr: (.*?)\n +for:", FLEET.read_text(), re.DOTALL))))
    assert used == {"relay_scheduled_events", "relay_build_info"}
    assert [name for name in used if f"`{name}`" not in METRICS] == []


# Series of four instances, a sample a minute: what fires after ninety minutes.
FLEET_CASES: list[tuple[str, dict[str, str], bool]] = [
    ("RelayEvictions", {"relay_scheduled_events": "0x100"}, False),
    ("RelayEvictions", {"relay_scheduled_events,a": "0x60 1x5 0x40"}, False),
    (
        "RelayEvictions",
        {"relay_scheduled_events,a": "0x60 1x5 0x40", "relay_scheduled_events,b": "0x70 1x5 0x30"},
        True,
    ),
    ("RelayFleetShrunk", {}, False),
    ("RelayFleetShrunk", {"gone": "abc"}, True),
    ("RelayFleetShrunk", {"gone": "ab"}, False),
]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool (make deps installs it)")
@pytest.mark.parametrize(("alert", "change", "fires"), FLEET_CASES)
def test_rules_of_the_fleet_fire_when_they_should(
    alert: str, change: dict[str, str], fires: bool, tmp_path: Path
) -> None:
    series = []
    for host in "abcd":
        gone = host in change.get("gone", "")
        labels = f'{{job="relay",instance="{host}"}}'
        series.append({"series": f"relay_build_info{labels}", "values": "1x50 _x50" if gone else "1x100"})
        values = change.get(f"relay_scheduled_events,{host}", "0x100")
        series.append({"series": f"relay_scheduled_events{labels}", "values": values})
    firing = f'count(ALERTS{{alertname="{alert}",alertstate="firing"}}) or vector(0)'
    check = {"expr": firing, "eval_time": "90m", "exp_samples": [{"labels": "{}", "value": int(fires)}]}
    document = {
        "rule_files": [str(FLEET)],
        "evaluation_interval": "1m",
        "tests": [{"interval": "1m", "input_series": series, "promql_expr_test": [check]}],
    }
    (tmp_path / "test.yml").write_text(json.dumps(document))
    done = subprocess.run(
        ["promtool", "test", "rules", tmp_path / "test.yml"], capture_output=True, text=True, timeout=50
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_azure_s_own_alerts(made: Prediction) -> None:
    criteria = {
        one["name"]: (
            one["properties"]["scopes"][0].split("/providers/")[1].partition("/relay")[0],
            one["properties"]["criteria"]["allOf"][0]["metricName"],
            one["properties"]["criteria"]["allOf"][0]["operator"],
            one["properties"]["criteria"]["allOf"][0]["threshold"],
        )
        for one in made.all("metricAlerts")
    }
    assert criteria == {
        "alert-relay-no-healthy-instance": (
            "Microsoft.Network/loadBalancers/lbe-relay",
            "DipAvailability",
            "LessThan",
            1,
        ),
        "alert-relay-address-unavailable": (
            "Microsoft.Network/loadBalancers/lbe-relay",
            "VipAvailability",
            "LessThan",
            90,
        ),
        "alert-relay-hub-throttles": (
            "Microsoft.Devices/IotHubs/myhub",
            "d2c.telemetry.ingress.sendThrottle",
            "GreaterThan",
            0,
        ),
    }
    set_id = made.one("virtualMachineScaleSets")["id"]
    failed = made.one("activityLogAlerts", "alert-relay-operation-failed")["properties"]["condition"]["allOf"]
    assert {"field": "status", "equals": "Failed"} in failed
    assert {"anyOf": [{"field": "resourceId", "equals": set_id}]} in failed
    repairs = made.one("activityLogAlerts", "alert-relay-repairs")["properties"]["condition"]["allOf"]
    assert "setOrchestrationServiceState" in str(repairs)
    (events,) = made.all("scheduledQueryRules")
    assert made.one("loadBalancers")["id"] in events["properties"]["criteria"]["allOf"][0]["query"]
    diagnostics = made.one("diagnosticSettings")
    assert diagnostics["id"].startswith(made.one("loadBalancers")["id"])
    assert [one["category"] for one in diagnostics["properties"]["logs"]] == ["LoadBalancerHealthEvent"]


def test_both_sets_are_watched() -> None:
    two = predict("uniform.bicepparam")
    watched = str(two.one("activityLogAlerts", "alert-relay-uni-operation-failed"))
    for one in two.all("virtualMachineScaleSets"):
        assert one["id"] in watched


def columns(made: Prediction) -> dict[str, str]:
    return {one["name"]: one["type"] for one in made.one("workspaces/tables")["properties"]["schema"]["columns"]}


def test_the_table_has_a_column_for_each_field_of_the_access_log(made: Prediction) -> None:
    """Those of docs/logs.md, and those that the interface promises beside them."""
    section = LOGS.partition("## Access log")[2].partition("### Refusals")[0]
    fields = {
        name for row in re.findall(r"^\| (`.*?) \|", section, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)
    }
    given = set(columns(made))
    assert fields - {"time"} <= given
    assert given - fields == {"TimeGenerated", "event", "id", "route", "customer"} - fields
    sample = re.search(r"```json\n(\{.*?\})\n```", section, re.DOTALL)
    assert sample
    kinds = {"string": str, "dynamic": list, "long": int, "real": float}
    for name, value in json.loads(sample[1]).items():
        if name != "time" and value is not None:
            assert isinstance(value, kinds[columns(made)[name]]), name


def test_the_rule_fills_that_table_from_that_file(made: Prediction) -> None:
    rule = made.one("dataCollectionRules")["properties"]
    (stream,) = rule["streamDeclarations"]
    assert stream == "Custom-RelayAccess_CL"
    declared = {one["name"] for one in rule["streamDeclarations"][stream]["columns"]}
    assert declared == set(columns(made)) | {"time"}
    (flow,) = rule["dataFlows"]
    assert (flow["streams"], flow["outputStream"]) == ([stream], stream)
    assert "TimeGenerated = todatetime(['time'])" in flow["transformKql"]
    (file,) = rule["dataSources"]["logFiles"]
    assert (file["format"], file["filePatterns"]) == ("json", ["/var/log/relay/access.json"])
    assert names(made, "dataCollectionRuleAssociations") == ["relay-access-log", "configurationAccessEndpoint"]
    set_id = made.one("virtualMachineScaleSets")["id"]
    assert all(one["id"].startswith(set_id) for one in made.all("dataCollectionRuleAssociations"))


def test_the_agent_has_the_identity_and_waits_for_health(made: Prediction) -> None:
    extensions = made.scale_set["virtualMachineProfile"]["extensionProfile"]["extensions"]
    agent = next(one["properties"] for one in extensions if one["name"] == "monitor")
    assert agent["type"] == "AzureMonitorLinuxAgent"
    identity = agent["settings"]["authentication"]["managedIdentity"]
    assert identity == {"identifier-name": "mi_res_id", "identifier-value": made.one("userAssignedIdentities")["id"]}
    assert agent["provisionAfterExtensions"] == ["health"]


def test_the_identity_may_write_metrics(made: Prediction) -> None:
    role = made.one("roleAssignments")
    assert "/resourceGroups/MA_amw-relay_westeurope_managed/" in role["id"]
    assert role["properties"]["roleDefinitionId"].endswith("3913510d-42f4-4e42-8a64-420c390055eb")
    assert "id-relay" in role["properties"]["principalId"]


def test_queries_of_the_workbook_name_columns_that_there_are(made: Prediction) -> None:
    data = json.loads(made.one("workbooks")["properties"]["serializedData"])
    queries = [item["content"]["query"] for item in data["items"] if item["type"] == 3]
    assert len(queries) == 4
    words = {
        "RelayAccess_CL",
        "where",
        "summarize",
        "count",
        "by",
        "bin",
        "sum",
        "percentile",
        "percentiles",
        "top",
        "tostring",
    }
    words |= {"split", "startswith", "isnotnull", "connections", "sent", "received", "median_seconds", "m", "client"}
    for query in queries:
        assert query.startswith("RelayAccess_CL | ")
        used = set(re.findall(r"[A-Za-z_]\w*", re.sub(r"'[^']*'", "", query)))
        assert used - words <= set(columns(made)), query


@pytest.mark.parametrize(
    ("monitoring", "sentence"),
    [
        (
            {"emails": ["a@example.com"], "accessLog": True, "workspaceId": "/subscriptions/1/resourceGroups/other/w"},
            "monitoring.accessLog: the table is made in a workspace of this resource group only.",
        ),
        ({"emails": []}, "the minimum allowable length is 1"),
    ],
)
def test_what_cannot_be_is_refused(monitoring: dict[str, Any], sentence: str) -> None:
    assert sentence in refusal("minimal.bicepparam", monitoring=monitoring)
