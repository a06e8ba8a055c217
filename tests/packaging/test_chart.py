"""The Helm chart: what it renders, what it refuses, and a relay that runs as its pod would.

Real Helm renders it, and kubernetes-validate checks the result against Kubernetes' own schemas. There is no cluster:
kube-proxy, the load balancer and an admission are not here.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

import relay
from relay.cli import _parser
from relay.settings import model
from relay.settings.tables import DrainSettings, SupervisionSettings
from tests.support.namespace import inside, needs_namespace
from tests.support.programs import ROOT, command, environment

pytestmark = pytest.mark.timeout(180)  # the first one may fetch the tools

CHART = ROOT / "deploy/helm/relay"
VALUES = sorted((ROOT / "tests/packaging/chart").glob("*.yaml"))
HUB = ROOT / "tests/packaging/chart/hub.yaml"
HOW_TO = ROOT / "docs/how-to/run-on-kubernetes.md"
VERSIONS = ("1.27", "1.34", "1.37")  # the oldest that Chart.yaml takes, and newer ones
KUBERNETES = "1.34.0"
Json = dict[str, Any]


@cache
def tool(name: str) -> str:
    done = subprocess.run([ROOT / "scripts/chart_tools.sh", name], capture_output=True, text=True, timeout=170)
    if done.returncode:
        pytest.skip(done.stderr.strip())
    return done.stdout.strip()


def helm(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([tool("helm"), *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=50)


def template(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return helm("template", "r", CHART, "--namespace", "iot", "--kube-version", KUBERNETES, *arguments)


def rendered(*arguments: str | Path) -> dict[str, Json]:
    """The objects of the chart, by kind; a Service for metrics as MetricsService."""
    done = template(*arguments)
    assert done.returncode == 0, done.stderr
    found: dict[str, Json] = {}
    for document in yaml.safe_load_all(done.stdout):
        metrics = document["metadata"]["labels"].get("app.kubernetes.io/component") == "metrics"
        kind = ("Metrics" if metrics else "") + document["kind"]
        assert kind not in found
        found[kind] = document
    return found


@cache
def objects(name: str) -> dict[str, Json]:
    return rendered("--values", ROOT / f"tests/packaging/chart/{name}.yaml")


def workload(found: dict[str, Json]) -> Json:
    (spec,) = [found[kind]["spec"] for kind in ("Deployment", "DaemonSet") if kind in found]
    return dict(spec)


def pod(found: dict[str, Json]) -> Json:
    return dict(workload(found)["template"]["spec"])


def container(found: dict[str, Json]) -> Json:
    (only,) = pod(found)["containers"]
    return dict(only)


def settings(found: dict[str, Json], folder: Path) -> model.Settings:
    """relay's settings, as its own loader reads them from the ConfigMap."""
    file = folder / "relay.toml"
    file.write_text(found["ConfigMap"]["data"]["relay.toml"])
    return model.load(file, {})


@pytest.fixture(params=VALUES, ids=lambda file: file.stem)
def found(request: pytest.FixtureRequest) -> dict[str, Json]:
    return objects(request.param.stem)


def test_the_versions_are_relay_s() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == relay.__version__
    assert container(objects("hub"))["image"] == f"myregistry.azurecr.io/relay:{relay.__version__}"


@pytest.mark.parametrize("values", VALUES, ids=lambda file: file.stem)
def test_helm_lint_has_nothing_to_say(values: Path) -> None:
    done = helm("lint", "--strict", CHART, "--values", values)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[WARNING]" not in done.stdout
    assert "[ERROR]" not in done.stdout


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_takes_every_object(version: str, tmp_path: Path) -> None:
    files = []
    for values in VALUES:
        for kind, item in objects(values.stem).items():
            if kind != "ServiceMonitor":  # of the Prometheus operator, not Kubernetes' own
                file = tmp_path / f"{values.stem}-{kind}.yaml"
                file.write_text(yaml.safe_dump(item))
                files.append(str(file))
    line = [tool("kubernetes-validate"), "--strict", "--kubernetes-version", version, *files]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("passed") + done.stderr.count("passed") == len(files), done.stdout + done.stderr


def test_kubernetes_validate_would_find_a_mistake(tmp_path: Path) -> None:
    item = json.loads(json.dumps(objects("hub")["Deployment"]))
    item["spec"]["template"]["spec"]["enableServiceLink"] = False
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(item))
    line = [tool("kubernetes-validate"), "--strict", str(tmp_path / "wrong.yaml")]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert "enableServiceLink" in done.stdout + done.stderr


# --- the pod ----------------------------------------------------------------------------------------------------------


def test_the_pod_has_no_privilege(found: dict[str, Json]) -> None:
    spec = pod(found)
    assert spec["enableServiceLinks"] is False
    assert spec["automountServiceAccountToken"] is False
    context = spec["securityContext"]
    assert context["runAsNonRoot"] is True
    assert (context["runAsUser"], context["runAsGroup"]) == (65532, 65532)
    assert context["sysctls"] == [{"name": "net.ipv4.ip_unprivileged_port_start", "value": "0"}]
    assert context["seccompProfile"]["type"] in ("RuntimeDefault", "Localhost")
    assert container(found)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
    assert all("hostPort" not in port for port in container(found)["ports"])
    dockerfile = (ROOT / "deploy/docker/Dockerfile").read_text()
    assert "\nUSER 65532:65532\n" in dockerfile


def test_the_probes_ask_the_health_port(found: dict[str, Json], tmp_path: Path) -> None:
    one = container(found)
    paths = {name: one[name]["httpGet"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert paths == {
        "startupProbe": {"path": "/livez", "port": "health"},
        "livenessProbe": {"path": "/livez", "port": "health"},
        "readinessProbe": {"path": "/readyz", "port": "health"},
    }
    (port,) = [port["containerPort"] for port in one["ports"] if port["name"] == "health"]
    assert settings(found, tmp_path).health.bind == f"0.0.0.0:{port}"


def test_the_times_fit_each_other(found: dict[str, Json], tmp_path: Path) -> None:
    """A drain is over before SIGKILL; the load balancer has noticed before accepting ends; relay heals itself first."""
    spec, one, loaded = pod(found), container(found), settings(found, tmp_path)
    drain = loaded.drain
    assert spec["terminationGracePeriodSeconds"] >= drain.announce + drain.window + 15
    ready, live = one["readinessProbe"], one["livenessProbe"]
    assert (ready["failureThreshold"] - 1) * ready["periodSeconds"] >= 10
    assert drain.announce >= ready["failureThreshold"] * ready["periodSeconds"] + 10
    assert (live["failureThreshold"] - 1) * live["periodSeconds"] > loaded.supervision.hang_timeout
    assert "lifecycle" not in one


def test_the_settings_are_those_of_the_values(tmp_path: Path) -> None:
    loaded = settings(objects("listeners"), tmp_path)
    assert (loaded.workers, loaded.engine) == (4, "stream")
    assert (loaded.limits.max_connections, loaded.limits.held_bytes) == (20000, 67108864)
    assert loaded.limits.connect_rate_per_source == 0.5
    assert loaded.access.allow == ("203.0.113.0/24", "2001:db8::/32")
    assert (loaded.timeouts.max_age, loaded.drain.announce) == (86400, 30.5)
    assert loaded.admin.hosts == ("relay.example",)
    assert loaded.log.access is False
    assert [listener.name for listener in loaded.listeners] == ["mqtt", "a_name-of_more_than_15", "health"]
    assert loaded.listeners[1].proxy_protocol == "require"


def test_every_listener_has_a_port_of_the_service(found: dict[str, Json], tmp_path: Path) -> None:
    listeners = settings(found, tmp_path).listeners
    wanted = {int(bind.rpartition(":")[2]) for listener in listeners for bind in listener.bind}
    ports = {port["name"]: port["containerPort"] for port in container(found)["ports"]}
    service = found["Service"]["spec"]
    assert {port["port"] for port in service["ports"]} == wanted
    assert all(ports[port["targetPort"]] == port["port"] for port in service["ports"])
    assert all(re.fullmatch(r"(?=.*[a-z])[a-z0-9]+(-[a-z0-9]+)*", name) and len(name) <= 15 for name in ports)
    assert len(ports) == len(container(found)["ports"])
    assert (service["type"], service["externalTrafficPolicy"]) == ("LoadBalancer", "Local")
    assert service["selector"].items() <= workload(found)["template"]["metadata"]["labels"].items()
    assert service["selector"] == workload(found)["selector"]["matchLabels"]


def test_a_change_of_the_settings_replaces_the_pods() -> None:
    def checksum(*more: str) -> str | None:
        one = workload(rendered("--values", HUB, *more))["template"]["metadata"]["annotations"]
        return str(one["checksum/settings"]) if "checksum/settings" in one else None

    assert checksum() == checksum()
    assert checksum() != checksum("--set", "settings.limits.max_connections=5")
    assert checksum("--set", "restartOnSettingsChange=false") is None


def test_pods_are_replaced_one_by_one_after_the_new_one_serves(found: dict[str, Json]) -> None:
    spec = workload(found)
    how = spec["strategy"] if "Deployment" in found else spec["updateStrategy"]
    assert how == {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    assert spec["minReadySeconds"] >= 10


def test_a_deployment_is_spread_and_protected() -> None:
    found = objects("hub")
    spec, budget = workload(found), found["PodDisruptionBudget"]["spec"]
    assert spec["replicas"] == 3
    assert budget["maxUnavailable"] == 1
    assert budget["selector"] == spec["selector"]
    spread = {item["topologyKey"]: item for item in pod(found)["topologySpreadConstraints"]}
    assert spread.keys() == {"kubernetes.io/hostname", "topology.kubernetes.io/zone"}
    assert all(item["labelSelector"] == spec["selector"] for item in spread.values())
    assert "PodDisruptionBudget" not in objects("ring")
    hosts = {
        item["topologyKey"]: item["whenUnsatisfiable"] for item in pod(objects("ring"))["topologySpreadConstraints"]
    }
    assert hosts["kubernetes.io/hostname"] == "DoNotSchedule"


SPOT = {"key": "kubernetes.azure.com/scalesetpriority", "operator": "Equal", "value": "spot", "effect": "NoSchedule"}


def test_spot_nodes_are_a_choice() -> None:
    assert "tolerations" not in pod(objects("hub"))
    assert pod(objects("ring"))["tolerations"] == [SPOT]
    assert SPOT["key"] not in pod(objects("ring"))["nodeSelector"]
    only = pod(objects("daemonset"))
    assert only["tolerations"] == [SPOT, {"key": "relay", "operator": "Exists", "effect": "NoSchedule"}]
    assert only["nodeSelector"] == {"kubernetes.io/os": "linux", SPOT["key"]: "spot", "agentpool": "relay"}


def test_a_daemonset_has_no_replicas_and_no_budget() -> None:
    found = objects("daemonset")
    assert not {"replicas", "strategy"} & found["DaemonSet"]["spec"].keys()
    assert "PodDisruptionBudget" not in found
    assert "topologySpreadConstraints" not in pod(found)


def test_a_seccomp_profile_of_one_s_own_turns_the_ring_on(tmp_path: Path) -> None:
    profile = {"type": "Localhost", "localhostProfile": "profiles/relay.json"}
    assert pod(objects("ring"))["securityContext"]["seccompProfile"] == profile
    assert settings(objects("ring"), tmp_path).engine == "ring"
    assert pod(objects("hub"))["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}


def test_the_admin_port_is_on_loopback_without_metrics(tmp_path: Path) -> None:
    found = objects("hub")
    assert settings(found, tmp_path).admin.bind == "127.0.0.1:8414"
    assert 8414 not in [port["containerPort"] for port in container(found)["ports"]]
    assert not {"NetworkPolicy", "MetricsService", "ServiceMonitor"} & found.keys()


def test_metrics_let_one_namespace_in(tmp_path: Path) -> None:
    found = objects("daemonset")
    assert settings(found, tmp_path).admin.bind == "0.0.0.0:8414"
    policy = found["NetworkPolicy"]["spec"]
    assert policy["podSelector"] == workload(found)["selector"]
    assert policy["policyTypes"] == ["Ingress"]
    everybody, monitoring = policy["ingress"]
    assert "from" not in everybody
    assert [port["port"] for port in everybody["ports"]] == ["https", "mqtt", "amqp", "health"]
    peer = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    assert monitoring == {"from": [peer], "ports": [{"port": "admin", "protocol": "TCP"}]}
    assert 8414 not in [port["port"] for port in found["Service"]["spec"]["ports"]]
    monitor, service = found["ServiceMonitor"], found["MetricsService"]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert not monitor["spec"]["selector"]["matchLabels"].items() <= found["Service"]["metadata"]["labels"].items()
    (endpoint,) = monitor["spec"]["endpoints"]
    assert (endpoint["port"], endpoint["path"]) == (service["spec"]["ports"][0]["name"], "/metrics")
    assert monitor["metadata"]["labels"]["release"] == "prometheus"


# --- what is refused --------------------------------------------------------------------------------------------------

REFUSED = {
    "terminationGracePeriodSeconds=104": "terminationGracePeriodSeconds: 104 is too short",
    "terminationGracePeriodSeconds=0": "terminationGracePeriodSeconds",
    "settings.drain.window=3600,terminationGracePeriodSeconds=200": "Set it to 3645 or more",
    "settings.drain.announce=24": "settings.drain.announce: 24 is too short",
    "settings.drain.announce=-1": "announce",
    "settings.drain.anounce=30": "anounce",
    "settings.limit.max_connections=5": "limit",
    "settings.upstream=null": "settings.upstream: not set",
    "settings.listeners[0].name=a,settings.listeners[0].bind={0.0.0.0:1}": "settings.upstream and settings.listeners",
    "settings.upstream=null,settings.listeners[0].name=a,settings.listeners[0].bind={0.0.0.0:0}": "bind 0.0.0.0:0",
    "settings.admin.bind=0.0.0.0:1": "settings.admin.bind: the chart sets it",
    "settings.health.bind=0.0.0.0:1": "settings.health.bind: the chart sets it",
    "settings.supervision.hang_timeout=20": "livenessProbe.failureThreshold",
    "readinessProbe.failureThreshold=2": "readinessProbe.failureThreshold",
    "ports.health=65536": "health",
    "ports.health=0": "health",
    "ports.admin=8080": "ports.health and ports.admin: both are 8080",
    "ports.admin=8883": "port 8883 is ports.health or ports.admin already",
    "replicaCount=3": "replicaCount",
    "image.name=x": "name",
    "image.registry=": "image.registry: not set",
    "image.digest=sha256:1": "digest",
    "kind=StatefulSet": "kind",
    "service.externalTrafficPolicy=Cluster": "externalTrafficPolicy",
    "seccompProfile.type=Unconfined": "type",
    "seccompProfile.type=Localhost": "seccompProfile.localhostProfile: not set",
    "seccompProfile.localhostProfile=a.json": "seccompProfile.localhostProfile: is used with type Localhost only",
    "metrics.enabled=true": "metrics.namespace: not set",
    "metrics.serviceMonitor.enabled=true": "metrics.serviceMonitor.enabled: needs metrics.enabled",
}


@pytest.mark.parametrize("given", REFUSED)
def test_a_value_that_is_wrong_is_named(given: str) -> None:
    done = template("--values", HUB, "--set", given)
    assert done.returncode != 0
    message = done.stderr.splitlines()
    assert any(REFUSED[given] in line for line in message if "Error" in line or line.startswith("- ")), done.stderr


def test_the_defaults_alone_say_what_is_missing() -> None:
    done = template()
    assert done.returncode != 0
    assert "settings.upstream: not set" in done.stderr


def test_a_drain_that_was_taken_out_is_relay_s_own(tmp_path: Path) -> None:
    """`null` removes a default of the chart, and relay's own holds: the chart has to know it."""
    some = ["settings.drain=null", "loadBalancerDetectSeconds=0"]
    found = rendered("--values", HUB, *[word for given in some for word in ("--set", given)])
    own = DrainSettings()
    assert settings(found, tmp_path).drain == own
    assert pod(found)["terminationGracePeriodSeconds"] == own.announce + own.window + 15
    (patience,) = re.findall(r"\$hang := (\d+)", (CHART / "templates/_checks.tpl").read_text())
    assert float(patience) == SupervisionSettings().hang_timeout


def test_the_schema_knows_relay_s_settings() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())["properties"]["settings"]
    assert set(schema["properties"]) == set(model.Settings.model_fields)
    assert schema["additionalProperties"] is False


def test_every_value_is_in_the_schema_and_has_a_comment() -> None:
    values = (CHART / "values.yaml").read_text()
    schema = json.loads((CHART / "values.schema.json").read_text())

    def check(table: Json, properties: Json, path: str) -> None:
        for name, value in table.items():
            assert name in properties, f"{path}{name}"
            if isinstance(value, dict) and "properties" in properties[name]:
                check(value, properties[name]["properties"], f"{path}{name}.")

    check(yaml.safe_load(values), schema["properties"], "")
    lines = values.splitlines()
    tables = {"image", "drain", "ports", "service", "startupProbe", "livenessProbe", "readinessProbe", "seccompProfile"}
    tables |= {"podDisruptionBudget", "topologySpread", "spot", "metrics", "serviceMonitor"}
    inside_resources = {"requests", "limits", "cpu", "memory"}
    for before, line in zip(["", *lines], lines, strict=False):
        name = line.strip().partition(":")[0]
        if line.strip() and not line.strip().startswith("#") and name not in tables | inside_resources:
            assert before.strip().startswith("#"), line


# --- a real relay -----------------------------------------------------------------------------------------------------


def test_the_variables_of_a_service_named_relay_are_refused(tmp_path: Path) -> None:
    """Which is why enableServiceLinks is false: Kubernetes would set these in every pod of the namespace."""
    file = tmp_path / "relay.toml"
    file.write_text(objects("hub")["ConfigMap"]["data"]["relay.toml"])
    links = {"RELAY_SERVICE_HOST": "10.0.0.7", "RELAY_SERVICE_PORT": "443", "RELAY_PORT": "tcp://10.0.0.7:443"}
    done = command("check", "--config", file, env={**environment(), **links})
    assert done.returncode == 2
    for variable in links:
        assert f"{variable}: unknown setting" in done.stderr


@needs_namespace
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv (util-linux) is not installed")
def test_a_pod_s_life(tmp_path: Path) -> None:
    values = {
        "image": {"registry": "example.com"},
        "settings": {
            "workers": 1,
            "listeners": [{"name": "https", "bind": ["0.0.0.0:443"], "upstream": ["127.0.0.1:9000"]}],
            "drain": {"announce": 2, "window": 1},
        },
        "readinessProbe": {"periodSeconds": 1, "failureThreshold": 1},
        "loadBalancerDetectSeconds": 0,
    }
    (tmp_path / "values.yaml").write_text(json.dumps(values))
    for name, more in (("first", []), ("changed", ["--set", "settings.limits.max_connections=77"])):
        toml = rendered("--values", tmp_path / "values.yaml", *more)["ConfigMap"]["data"]["relay.toml"]
        (tmp_path / f"{name}.toml").write_text(toml)
    seen = json.loads(
        inside("tests.packaging.pod", tmp_path / "first.toml", tmp_path / "changed.toml").splitlines()[-1]
    )
    status, said = seen["without_sysctl"]
    assert status == 1
    assert "0.0.0.0:443" in said
    assert seen["capabilities"] == ["0000000000000000"] * 2
    assert (seen["livez"], seen["echoes"]) == (200, True)
    assert (seen["reload"], seen["limit"]) == (0, ["relay_connections_limit 77.0"])
    assert seen["draining"][0] == 503
    assert "draining" in seen["draining"][1]
    assert (seen["livez_draining"], seen["echoes_draining"]) == (200, True)
    assert (seen["device"], seen["status"]) == (True, 0)


# --- the page ---------------------------------------------------------------------------------------------------------


def page_lines(program: str) -> list[str]:
    return [line.strip() for line in HOW_TO.read_text().splitlines() if line.startswith(f"    {program} ")]


@pytest.mark.parametrize("line", page_lines("helm"))
def test_the_commands_of_the_page(line: str, tmp_path: Path) -> None:
    """As they stand there; an installation is rendered instead, since there is no cluster."""
    (values,) = re.findall(r"^    image:\n(?:    .*\n)+", HOW_TO.read_text(), re.MULTILINE)
    (tmp_path / "relay-values.yaml").write_text(re.sub(r"^    ", "", values, flags=re.MULTILINE))
    (tmp_path / "deploy").symlink_to(ROOT / "deploy")
    line = re.sub(r"^helm upgrade( --install)? ", f"helm template --kube-version {KUBERNETES} ", line)
    line = re.sub(r"^helm ", f"{tool('helm')} ", line)
    done = subprocess.run(["sh", "-c", line], cwd=tmp_path, capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr
    if " template " in line:
        kinds = {item["kind"] for item in yaml.safe_load_all(done.stdout)}
        assert {"ConfigMap", "Deployment", "Service"} <= kinds
        assert ("NetworkPolicy" in kinds) is ("metrics.enabled=true" in line)


def test_relay_takes_the_commands_that_the_page_runs_in_a_pod() -> None:
    lines = page_lines("kubectl")
    assert lines
    for line in lines:
        words = line.partition("-- /opt/relay/bin/relay ")[2].split()
        assert _parser().parse_args(words).command == "reload"
