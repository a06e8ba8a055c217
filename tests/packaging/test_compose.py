"""compose.yaml, brought up: relay before the stand-in hub, devices, and a Prometheus that scrapes it.

podman-compose reads the file here. Docker Compose needs dockerd; that it resolves the file is a test of its own
(test_container.py). Prometheus is this machine's program in place of its image. There is no Grafana.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import resource
import shutil
import ssl
import sys
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from relay.demo import telemetry
from tests.docs import blocks
from tests.packaging import containers as engine
from tests.packaging.containers import BASE, Containers
from tests.support.observe import wait_until
from tests.support.programs import ROOT

pytestmark = [pytest.mark.packages, pytest.mark.timeout(900)]

COMPOSE = ROOT / "deploy/docker/compose.yaml"
FILE: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())
SERVICES = "relay prometheus hub devices"  # all but grafana
DEVICES = {"mqtt-1", "mqtt-2", "https-3"}
PATIENCE = 120.0  # seconds; Prometheus scrapes every 15
# The official image's user, entry point, folder and arguments; the program is this machine's.
PROMETHEUS = """\
FROM {base}
COPY prometheus /bin/prometheus
RUN mkdir -p /prometheus /etc/prometheus && chown 65534:65534 /prometheus
USER 65534
WORKDIR /prometheus
ENTRYPOINT ["/bin/prometheus"]
CMD ["--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/prometheus"]
"""
# `docker compose` is podman-compose here, with the file and the profile that the page exports, and OVERRIDE.
PAGE = [
    command.line.removeprefix("docker compose ")
    for command in blocks.commands()
    if command.page == "docs/how-to/run-in-docker.md" and command.line.startswith("docker compose ")
]
# All that is not the file's own: the limits of relay, which may be beyond this machine's hard limits.
MEMLOCK = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
LIMITS = {"nofile": engine.MOST_DESCRIPTORS, **({} if MEMLOCK == resource.RLIM_INFINITY else {"memlock": MEMLOCK})}
OVERRIDE = {"services": {"relay": {"ulimits": LIMITS}}}


class Project:
    """The compose project, in a network namespace of the test's own."""

    def __init__(self, containers: Containers, command: str) -> None:
        self.containers = containers
        self._command = command

    def compose(self, line: str) -> str:
        """Run a subcommand, in the file's folder: podman-compose takes the seccomp profile from there; its output."""
        done = self.containers.run(f"{self._command} {line}", cwd=COMPOSE.parent, timeout=PATIENCE * 5)
        assert done.returncode == 0, f"{line}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def name(self, service: str) -> str:
        """The container of a service."""
        label = f"label=com.docker.compose.service={service}"
        (found,) = self.containers.sh(f"docker ps --all --filter {label} --format '{{{{.Names}}}}'").splitlines()
        return found

    def lines(self, service: str) -> list[dict[str, Any]]:
        """What a service has printed as JSON."""
        return self.containers.log(self.name(service))

    def get(self, port: int, path: str) -> Any:
        """An answer of a published port, as JSON where it is. Raises OSError and HTTPException."""
        with self.containers.connect(("127.0.0.1", port)) as client:
            connection = http.client.HTTPConnection("127.0.0.1", port)
            connection.sock = client
            connection.request("GET", path)
            answer = connection.getresponse()
            body = answer.read()
            assert answer.status == 200, (path, answer.status, body)
            return json.loads(body) if answer.getheader("Content-Type", "").startswith("application/json") else body

    def query(self, expression: str) -> dict[str, float]:
        """A query of Prometheus: values by instance."""
        answer = self.get(9090, f"/api/v1/query?query={urllib.parse.quote(expression)}")
        assert answer["status"] == "success"
        return {item["metric"]["instance"]: float(item["value"][1]) for item in answer["data"]["result"]}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Project]:
    if reason := engine.missing():
        pytest.skip(reason)
    if not Path("/usr/lib/podman/aardvark-dns").exists():
        pytest.skip("no aardvark-dns (make deps installs it): containers cannot find each other by name")
    prometheus = shutil.which("prometheus")
    if prometheus is None:
        pytest.skip("no prometheus (make deps installs it)")
    try:
        base = engine.base()
        podman_compose = engine.module(tmp_path_factory.mktemp("tool"), "podman-compose==1.5.0", "podman_compose.py")
    except OSError as error:
        pytest.skip(f"no base image or no podman-compose: {error}")
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print(  # noqa: T201
            f"\n[{FILE['services']['grafana']['image']} is left out: it comes from a registry alone, and no package "
            f"index has Grafana; {FILE['services']['prometheus']['image']} is a stand-in with this machine's program]"
        )
    with contextlib.ExitStack() as stack:
        containers = stack.enter_context(Containers(tmp_path_factory.mktemp("compose")))
        containers.sh(f"docker import {base} {BASE}")
        place = tmp_path_factory.mktemp("prometheus")
        shutil.copy(prometheus, place)
        (place / "Dockerfile").write_text(PROMETHEUS.format(base=BASE))
        containers.sh(f"docker build -t {FILE['services']['prometheus']['image']} .", cwd=place)
        override = place / "override.yaml"
        override.write_text(yaml.safe_dump(OVERRIDE))
        variables = f"RELAY_UPSTREAM={telemetry.HUB_NAME} COMPOSE_PROJECT_NAME=relay"
        command = (
            f"{variables} {sys.executable} {podman_compose} --podman-path $(command -v docker) --in-pod false"
            f" --parallel 1 -f {COMPOSE} -f {override} --profile demo"
        )
        made = Project(containers, command)
        (up, *_) = PAGE
        try:
            made.compose(f"{up} {SERVICES}")
            yield made
        finally:
            containers.run(f"{command} down --volumes --timeout 0", cwd=COMPOSE.parent)


def test_devices_send_through_relay_to_the_stand_in_hub(project: Project) -> None:
    def arrived() -> set[str]:
        return {line["device"] for line in project.lines("hub") if "device" in line}

    def acknowledged() -> set[str]:
        return {line["device"] for line in project.lines("devices") if line.get("acknowledged")}

    wait_until(lambda: arrived() == DEVICES, PATIENCE, lambda: f"{arrived()}: {project.lines('devices')}")
    wait_until(lambda: acknowledged() == DEVICES, PATIENCE, lambda: f"{project.lines('devices')}")
    status = json.loads(project.containers.sh(f"docker exec {project.name('relay')} relay status --json"))
    assert status["state"] == "ready", "the hub answers on all three ports"
    assert status["connections"]["active"] >= len(DEVICES)


def test_a_device_outside_reaches_the_hub_by_the_published_port(project: Project) -> None:
    authority = project.containers.sh(f"docker exec {project.name('hub')} cat /demo/authority.pem")
    context = ssl.create_default_context(cadata=authority)
    for port in (443, 5671, 8883):
        with (
            project.containers.connect(("127.0.0.1", port)) as plain,
            context.wrap_socket(plain, server_hostname=telemetry.HUB_NAME) as device,
        ):
            assert device.version() == "TLSv1.3"


def test_relay_has_what_the_file_gives_it(project: Project) -> None:
    name = project.name("relay")
    first = project.lines("relay")[0]
    assert first["descriptors"] == engine.MOST_DESCRIPTORS
    status = Path(f"/proc/{project.containers.pid(name)}/status").read_text()
    assert "\nCapEff:\t0000000000000000\n" in status
    assert "\nNoNewPrivs:\t1\n" in status
    assert "\nSeccomp:\t2\n" in status
    assert "seccomp" not in first["engine_reason"], "seccomp.json does not keep io_uring away"
    assert project.containers.inspect(name)["HostConfig"]["ReadonlyRootfs"]
    assert project.get(8080, "/readyz")
    with pytest.raises(ConnectionRefusedError):
        project.get(8414, "/metrics")


def test_prometheus_scrapes_relay_and_has_its_rules(project: Project) -> None:
    # The devices' connections are there since the start: scraped, not counted by Prometheus afterwards.
    accepted = "sum by (instance) (relay_connections_accepted_total)"
    wait_until(
        lambda: project.query(accepted).get("relay:8414", 0) >= len(DEVICES), PATIENCE,
        lambda: f"{project.get(9090, '/api/v1/targets')}",
    )  # fmt: skip
    assert project.query('up{job="relay"}') == {"relay:8414": 1}
    groups = project.get(9090, "/api/v1/rules")["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    wanted = yaml.safe_load((ROOT / "deploy/prometheus/relay.rules.yml").read_text())
    assert len(rules) == sum(len(group["rules"]) for group in wanted["groups"]) > 10
    assert {rule["health"] for rule in rules} <= {"ok", "unknown"}, "unknown: not evaluated yet"
    assert not [rule["name"] for rule in rules if rule.get("state") == "firing"]


def test_the_commands_of_the_guide(project: Project) -> None:
    """As they stand there; `up` has run with all services but grafana, and takes down what it started."""
    _, logs, status, down = PAGE
    assert '"acknowledged"' in project.compose(logs)
    assert "engine" in project.compose(status)
    project.compose(down)
    assert not project.containers.sh("docker ps --all --quiet")
    assert not project.containers.sh("docker volume ls --quiet")
