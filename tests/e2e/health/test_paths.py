"""What the two HTTP ports answer: the health port three paths and no more, the admin port everything."""

from __future__ import annotations

import http.client
import json

import pytest
from prometheus_client.core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families

import relay
from tests.support.clients import TIMEOUT, connect, echoes, exchange, until
from tests.support.harness import Relay, Start
from tests.support.observe import wait_until
from tests.support.relay_toml import listener, settings
from tests.support.upstreams import Echo, Upstream, resetter


@pytest.fixture
def running(echo: Echo, start: Start) -> Relay:
    return start(settings(listener(echo.address), workers=2))


@pytest.mark.parametrize("port", ["admin", "health"])
def test_the_three_health_paths(running: Relay, port: str) -> None:
    assert running.get("/livez", port) == (200, "ok\n")
    assert running.get("/readyz", port) == (200, "ok\n")
    code, text = running.get("/healthz", port)
    assert (code, json.loads(text)) == (200, {"ApplicationHealthState": "Healthy"})


def test_the_health_port_has_nothing_else(running: Relay) -> None:
    for path in ("/", "/metrics", "/status", "/livez/", "/readyz/../status", "//status", "/drain"):
        assert running.get(path, "health")[0] == 404, path
    for method in ("POST", "PUT", "DELETE"):
        with connect(running.address("health")) as client:
            client.sendall(f"{method} /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode())
            assert client.recv(100).startswith(b"HTTP/1.1 405 ")


def test_the_admin_port_says_what_it_has(running: Relay) -> None:
    code, text = running.get("/")
    assert code == 200
    for path in ("/livez", "/readyz", "/healthz", "/metrics", "/status"):
        assert path in text
        assert running.get(path)[0] == 200
    assert running.get("/nothing")[0] == 404


def test_either_port_can_be_off(echo: Echo, start: Start) -> None:
    toml = settings(listener(echo.address)).replace('[health]\nbind = "127.0.0.1:0"', '[health]\nbind = ""')
    running = start(toml)
    assert [line["listener"] for line in running.events("listening")] == ["main", "admin"]
    assert echoes(running.address())


def test_a_probe_that_sends_garbage(running: Relay) -> None:
    for data in (
        b"\0" * 100,
        b"GET /livez HTTP/1.1\r\nno header\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
    ):
        with connect(running.address("health")) as client:
            try:
                client.sendall(data)
                client.settimeout(TIMEOUT)
                answer = client.recv(1000)
            except ConnectionResetError:
                continue
            assert answer == b"" or answer.startswith((b"HTTP/1.0 400 ", b"HTTP/1.1 400 ")), data[:20]
    assert running.get("/livez", "health") == (200, "ok\n")


ANSWERED = [
    (b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n", 200),
    (b"\r\n\r\nGET /livez HTTP/1.1\r\nHost: x\r\n\r\n", 200),  # RFC 9112 section 2.2
    (b"HEAD /livez HTTP/1.0\r\n\r\n", 200),
    (b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n", 404),
    (b"POST /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", 405),
    (b"POST /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n", 405),  # a body that does not come
    (b"GET /livez HTTP/1.1\r\nno header\r\n\r\n", 400),
    (b"GET /livez HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400),
    (b"GET /livez HTTP/1.1\r\nHost: x\r\nExpect: wonders\r\n\r\n", 417),
    (b"GET /" + b"a" * 10_000 + b" HTTP/1.1\r\n\r\n", 400),
    (b"GET / HTTP/9.9\r\n\r\n", 400),
    (b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03", 400),
    (b"\0" * 100, 400),
    (b"nonsense\r\n\r\n", 400),
]


@pytest.mark.parametrize("port", ["admin", "health"])
def test_every_answer_says_that_it_is_a_relay_s(running: Relay, port: str) -> None:
    for request, code in ANSWERED:
        with connect(running.address(port)) as client:
            client.sendall(request)
            head = until(client, b"\r\n\r\n").decode().splitlines()
        assert head[0].split()[1] == str(code), (request[:40], head)
        assert [line for line in head if line.startswith("Server:")] == [f"Server: relay/{relay.__version__}"]


def test_status(running: Relay, echo: Echo, engine: str) -> None:
    assert echoes(running.address(), b"x" * 1000)
    running.wait_outcomes({"ok": 1})
    with connect(running.address()) as client:
        assert exchange(client) == b"ping"
        status = running.wait_active(1)
        assert status["version"] == relay.__version__
        assert status["engine"] == engine
        assert status["pid"] == running.process.pid
        assert status["uptime_seconds"] > 0
        assert (status["state"], status["reason"], status["live"]) == ("ready", "", True)
        assert status["connections"]["active"] == status["connections"]["admitted"] == 1
        assert status["connections"]["accepted"] == 2
        assert status["connections"]["outcomes"]["ok"] == 1
        (main,) = status["listeners"]
        host, port = running.address()
        assert main["name"] == "main"
        assert main["bind"] == [f"{host}:{port}"]
        assert main["upstream"] == [f"{echo.address[0]}:{echo.address[1]}"]
        assert (main["active"], main["accepted"], main["outcomes"]) == (1, 2, {"ok": 1})
        assert [worker["index"] for worker in status["workers"]] == [0, 1]
        for worker in status["workers"]:
            assert worker["ready"]
            assert not worker["hung"]
            assert 0 <= worker["heartbeat_age_seconds"] < 3
            assert worker["restarts"] == 0
            assert worker["held_bytes"] == 0
        assert sum(worker["active"] for worker in status["workers"]) == 1


def test_metrics(echo: Echo, start: Start, engine: str) -> None:
    with Upstream(resetter(4)) as bad:
        running = start(settings(listener(echo.address), listener(bad.address, name="bad"), workers=2))
        assert echoes(running.address(), b"x" * 1000)
        with connect(running.address("bad")) as client:
            client.sendall(b"ping")
            running.wait_outcomes({"ok": 1, "upstream_reset": 1})
        upstream = f"{echo.address[0]}:{echo.address[1]}"
        with connect(running.address()):
            running.wait_active(1)
            wait_until(lambda: running.metrics().value("relay_connect_seconds_count", upstream=upstream) == 2)
            metrics = running.metrics()
    assert metrics.value("relay_connections_active", listener="main") == 1
    assert metrics.value("relay_connections_accepted_total", listener="main") == 2
    assert metrics.outcomes("main") == {"ok": 1}
    assert metrics.outcomes("bad") == {"upstream_reset": 1}
    # An outcome that has not happened is there as 0, so that a rate over it works from the first time on.
    assert metrics.value("relay_connections_total", listener="bad", outcome="worker_died") == 0
    assert metrics.value("relay_bytes_total", listener="main", direction="up") == 1000
    assert metrics.value("relay_bytes_total", listener="main", direction="down") == 1000
    assert metrics.value("relay_bytes_total", listener="bad", direction="up") == 4
    assert metrics.value("relay_connect_seconds_count", upstream=upstream) == 2
    assert metrics.value("relay_connect_seconds_bucket", upstream=upstream, le="+Inf") == 2
    assert 0 < metrics.value("relay_connect_seconds_sum", upstream=upstream) < TIMEOUT
    assert metrics.value("relay_connection_seconds_count", listener="main") == 1
    assert metrics.value("relay_draining") == 0
    assert metrics.value("relay_workers") == 2
    assert metrics.value("relay_worker_restarts_total") == 0
    assert metrics.value("relay_log_lines_dropped_total") == 0
    assert metrics.value("relay_build_info", version=relay.__version__, engine=engine) == 1
    for worker in ("0", "1"):
        assert metrics.value("relay_held_bytes", worker=worker) == 0
        assert metrics.value("relay_loop_lag_seconds", worker=worker) < TIMEOUT
    histograms = {name for name, kind in metrics.types.items() if kind == "histogram"}
    assert histograms == {"relay_connect_seconds", "relay_connection_seconds"}


def scrape(running: Relay, accept: str | None) -> tuple[str, str]:
    """Content type and body of /metrics."""
    connection = http.client.HTTPConnection(*running.address("admin"), timeout=TIMEOUT)
    try:
        connection.request("GET", "/metrics", headers={} if accept is None else {"Accept": accept})
        answer = connection.getresponse()
        assert answer.status == 200
        return answer.headers["Content-Type"], answer.read().decode()
    finally:
        connection.close()


def test_metrics_come_in_the_format_that_is_asked_for(running: Relay) -> None:
    for accept in (None, "*/*", "application/openmetrics-text;version=abc"):
        assert scrape(running, accept)[0] == "text/plain; version=0.0.4; charset=utf-8"
    content_type, text = scrape(running, "text/plain;version=0.0.4")
    assert content_type == "text/plain; version=0.0.4; charset=utf-8"
    plain = {name for family in text_string_to_metric_families(text) for name in names(family)}
    content_type, text = scrape(running, "application/openmetrics-text;version=1.0.0")
    assert content_type == "application/openmetrics-text; version=1.0.0; charset=utf-8; escaping=underscores"
    assert text.endswith("# EOF\n")
    # The stricter parser of the stricter format takes it, and finds the same.
    families = openmetrics_families(text)  # type: ignore[no-untyped-call]  # of prometheus_client, as its other parser
    assert {name for family in families for name in names(family)} == plain


def names(family: Metric) -> set[str]:
    return {sample.name for sample in family.samples}


def test_a_relay_is_not_ready_before_its_workers_are(running: Relay) -> None:
    # The start log is in order: nobody was told "ready" before the last worker was.
    events = [line["event"] for line in running.log_lines()]
    assert events.index("ready") > max(i for i, event in enumerate(events) if event == "worker ready")
