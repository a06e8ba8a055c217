"""Checks of upstreams by TLS, in a whole relay: what the log, /status, the metrics and `relay check` say of them."""

from __future__ import annotations

import datetime
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from tests.support.clients import TIMEOUT, connect
from tests.support.dns_server import NameServer
from tests.support.harness import Json, Relay, Start
from tests.support.observe import wait_until
from tests.support.programs import command, environment
from tests.support.relay_toml import listener, settings
from tests.support.upstreams import Upstream, mute, refusing

HUB, SPARE = "myhub.azure-devices.net", "spare.azure-devices.net"
DAY = 86_400


class Hub:
    """A hub whose certificate a test may replace; and the environment in which its authority is trusted."""

    def __init__(self, directory: Path) -> None:
        self._authority = trustme.CA()
        self.file = directory / "authority.pem"
        self._authority.cert_pem.write_to_path(str(self.file))
        self.environ = {"SSL_CERT_FILE": str(self.file), "SSL_CERT_DIR": str(directory / "none")}
        self.context = self._next = self.certificate(HUB, 30)
        self.context.sni_callback = self._choose

    def certificate(self, name: str, days: float, authority: trustme.CA | None = None) -> ssl.SSLContext:
        now = datetime.datetime.now(datetime.UTC)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        (authority or self._authority).issue_cert(
            name, not_before=now - datetime.timedelta(days=90), not_after=now + datetime.timedelta(days=days)
        ).configure_cert(context)
        return context

    def present(self, context: ssl.SSLContext) -> None:
        """Use another certificate from the next handshake on."""
        self._next = context

    def _choose(self, sock: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        sock.context = self._next


@pytest.fixture
def hub(tmp_path: Path) -> Hub:
    return Hub(tmp_path)


@pytest.fixture
def names() -> Iterator[NameServer]:
    with NameServer({HUB: ["127.0.0.1"], SPARE: ["127.0.0.1"]}, ttl=300) as running:
        yield running


def toml(names: NameServer, *listeners: str) -> str:
    text = settings(*listeners, tables=f"{names.table()}[dial]\nconnect_timeout = 1.0\n", checks=0.1)
    return text.replace("interval = 0.1\n", "interval = 0.1\ntls = true\n")


def upstream(relay: Relay) -> Json:
    (found,) = relay.status()["upstreams"]
    assert isinstance(found, dict)
    return found


def said_last(relay: Relay, event: str, count: int) -> Json:
    """The last log line of that event, once there are `count`."""
    return relay.told(event, count)[-1]


def expiry(relay: Relay, name: str) -> float | None:
    return relay.metrics().by_label("relay_upstream_certificate_expiry_seconds", "upstream").get(name)


def test_a_hub_is_down_while_its_certificate_does_not_verify(hub: Hub, names: NameServer, start: Start) -> None:
    with Upstream(mute, tls=hub.context) as server:
        name = f"{HUB}:{server.address[1]}"
        relay = start(toml(names, listener(name)), environ=hub.environ)
        wait_until(lambda: expiry(relay, name), what="a handshake")
        assert abs((expiry(relay, name) or 0) - time.time() - 30 * DAY) < 600
        assert upstream(relay)["certificate_expiry"] == expiry(relay, name)
        client = ssl.create_default_context(cafile=str(hub.file))
        with client.wrap_socket(connect(relay.address()), server_hostname=HUB):
            pass  # a device's own handshake, through the relay
        faults = {
            "certificate expired": hub.certificate(HUB, -1),
            f"certificate of another name: not valid for {HUB}": hub.certificate(SPARE, 30),
            "certificate of an unknown authority: unable to get local issuer certificate": hub.certificate(
                HUB, 30, trustme.CA()
            ),
        }
        for number, (why, context) in enumerate(faults.items(), start=1):
            hub.present(context)
            wait_until(lambda: not upstream(relay)["up"], what=why)
            wait_until(lambda: relay.get("/readyz") == (503, "no upstream: main\n"), what="not ready")
            down = said_last(relay, "upstream down", number)
            assert (down["address"], down["name"], down["reason"]) == (f"127.0.0.1:{server.address[1]}", HUB, why)
            assert upstream(relay)["addresses"][0]["reason"] == why
            assert relay.metrics().value("relay_upstream_up", upstream=name) == 0
            assert (
                command("status", "--admin", "http://{}:{}".format(*relay.address("admin"))).stdout.count("down: ") == 1
            )
            hub.present(hub.certificate(HUB, 60))
            wait_until(lambda: upstream(relay)["up"], what="up again")
            wait_until(lambda: relay.get("/readyz")[0] == 200, what="ready again")
            assert upstream(relay)["addresses"][0]["reason"] == ""
        assert abs((expiry(relay, name) or 0) - time.time() - 60 * DAY) < 600


def test_an_endpoint_that_accepts_tcp_without_its_hub_is_down(hub: Hub, names: NameServer, start: Start) -> None:
    """The route goes to its backup, which a check by TCP alone would never have led to."""
    with Upstream(mute) as endpoint, Upstream(mute, tls=hub.certificate(SPARE, 30)) as spare:
        route = (
            f'[[listeners.routes]]\nname = "hub"\nsni = ["{HUB}", "{SPARE}"]\n'
            f'upstream = ["{HUB}:{endpoint.address[1]}"]\nbackup = ["{SPARE}:{spare.address[1]}"]\n'
        )
        text = toml(names, listener(name="main", more=route)).replace("upstream = []\n", "")
        relay = start(text, environ=hub.environ)
        wait_until(lambda: relay.get("/readyz") == (200, "on backup: main.hub\n"), what="the backup")
        assert said_last(relay, "upstream down", 1)["reason"] == "TLS handshake: not complete in 1 s"
        client = ssl.create_default_context(cafile=str(hub.file))
        with client.wrap_socket(connect(relay.address()), server_hostname=SPARE):
            pass


def test_a_reload_turns_checks_by_tls_on_and_off(hub: Hub, names: NameServer, start: Start) -> None:
    with Upstream(mute, tls=hub.context) as server:
        name = f"{HUB}:{server.address[1]}"
        on = toml(names, listener(name))
        relay = start(on.replace("tls = true", "tls = false"), environ=hub.environ)
        hub.present(hub.certificate(HUB, -1))
        assert expiry(relay, name) is None
        assert upstream(relay)["up"]
        relay.config.write_text(on)
        assert relay.post("/reload") == (200, "ok\n")
        wait_until(lambda: not upstream(relay)["up"], what="down")
        assert said_last(relay, "reloaded", 1)["changed"] == ["health_check.tls"]
        relay.config.write_text(on.replace('name = "main"', 'name = "main"\nhealth_check.tls = false'))
        assert relay.post("/reload") == (200, "ok\n")
        assert upstream(relay)["up"], "the listener's own check, by TCP"
        assert said_last(relay, "reloaded", 2)["changed"] == ["listeners.main"]


@pytest.mark.parametrize("fault", ["", "expired", "name", "mute", "refused"])
def test_check_says_what_is_wrong(hub: Hub, names: NameServer, tmp_path: Path, fault: str) -> None:
    hub.present({"expired": hub.certificate(HUB, -1), "name": hub.certificate(SPARE, 30)}.get(fault, hub.context))
    with Upstream(mute, tls=None if fault == "mute" else hub.context) as server, refusing() as dead:
        port = dead[1] if fault == "refused" else server.address[1]
        result = check(hub, names, tmp_path, port)
    said = result.partition(f"upstream {HUB}:{port}: 127.0.0.1:{port}: ")[2].splitlines()[0]
    if not fault:
        assert said.startswith("connected in 0.")
        assert said.endswith(f" s, certificate of {HUB} verified, which expires in 30 days")
        return
    assert (
        said
        == {
            "expired": "certificate expired",
            "name": f"certificate of another name: not valid for {HUB}",
            "mute": "TLS handshake: not complete in 1 s",
            "refused": "connection refused",
        }[fault]
    )


def check(hub: Hub, names: NameServer, directory: Path, port: int) -> str:
    path = directory / "relay.toml"
    path.write_text(toml(names, listener(f"{HUB}:{port}")))
    result = command("check", "--connect", "--config", path, env={**environment(), **hub.environ}, timeout=2 * TIMEOUT)
    assert result.stderr == ""
    assert (result.returncode == 0) == ("verified" in result.stdout)
    return result.stdout


def test_a_machine_that_cannot_verify_anything_is_told_before_it_starts(names: NameServer, tmp_path: Path) -> None:
    path = tmp_path / "relay.toml"
    path.write_text(toml(names, listener(f"{HUB}:1")))
    environ = {**environment(), "SSL_CERT_FILE": str(tmp_path / "none"), "SSL_CERT_DIR": str(tmp_path / "none")}
    for line in ("check", "run"):
        result = command(line, "--config", path, env=environ)
        assert result.returncode == 1
        assert "health_check.tls: no certificate authority in " in result.stderr
