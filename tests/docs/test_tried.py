"""The commands that the pages tell one to try, run against a relay with the settings that stand above them.

Only names, addresses and ports are others: a server of the test's own stands for example.com and the hub.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from relay.settings.model import load, render
from tests.docs import blocks
from tests.e2e.routes.places import Places
from tests.support.dns_server import NameServer
from tests.support.harness import Relay
from tests.support.programs import RELAY, ROOT, environment
from tests.support.tls import NAME, Tls

pytestmark = pytest.mark.skipif(
    shutil.which("curl") is None or shutil.which("openssl") is None,
    reason="no curl and openssl (make deps installs them)",
)


class _Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = b"from the upstream\n"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments: object) -> None:
        """Not on a test's standard error."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    tls: Tls

    def finish_request(self, request: Any, client_address: Any) -> None:
        # In the handler's thread, and only for who speaks: a client that resets at once, as a probe does, makes
        # SSLSocket.accept() leave an open socket behind.
        with contextlib.suppress(OSError):
            if request.recv(1, socket.MSG_PEEK):
                with self.tls.server.wrap_socket(request, server_side=True) as secure:
                    super().finish_request(secure, client_address)

    def handle_error(self, _request: object, _address: object) -> None:
        """A client that gives up is none of this server's business."""


@pytest.fixture
def tls(tmp_path: Path) -> Tls:
    return Tls(tmp_path)


@pytest.fixture
def upstream(tls: Tls) -> Iterator[str]:
    """HTTPS, for NAME."""
    with _Server(("127.0.0.1", 0), _Page) as server:
        server.tls = tls
        thread = threading.Thread(target=server.serve_forever, args=[0.01])
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def page_settings(page: str, first: str) -> str:
    """The settings of a page that have that listener first."""
    (text,) = [block.text for block in blocks.settings() if block.page == page and f'name = "{first}"' in block.text]
    return text


def listening(toml: str, upstream: str) -> str:
    """These settings with ports of the kernel's choice, the test's upstream, and its name for those let through."""
    toml = re.sub(r"^bind = .*$", 'bind = ["127.0.0.1:0"]', toml, flags=re.MULTILINE)
    toml = re.sub(r"^upstream = .*$", f'upstream = ["{upstream}"]', toml, flags=re.MULTILINE)
    toml = re.sub(r"^trusted_proxies = .*$", 'trusted_proxies = ["127.0.0.0/8"]', toml, flags=re.MULTILINE)
    toml = toml.replace("myhub.azure-devices.net", NAME)
    ports = "".join(f'[{name}]\nbind = "127.0.0.1:0"\n' for name in ("admin", "health"))
    return f"workers = 1\n{toml}{ports}[health_check]\ninterval = 0.0\n[drain]\nannounce = 0.0\n"


def page_commands(page: str, program: str) -> list[str]:
    return [command.line for command in blocks.commands() if command.page == page and command.words[0] == program]


def tried(line: str, changes: dict[str, str], tls: Tls | Places, admin: str = "") -> subprocess.CompletedProcess[str]:
    """A line as a shell has it, with other names and ports, and this test's authority for the world's."""
    for old, new in changes.items():
        line = line.replace(old, new)
    line = re.sub(r"^curl ", f"curl --silent --show-error --cacert {tls.authority} ", line)
    line = re.sub(r"^openssl s_client ", f"openssl s_client -verify_return_error -CAfile {tls.authority} ", line)
    line = re.sub(r"^relay (status|reload)", rf"relay \1 --admin {admin}", line)
    line = re.sub(r"^relay ", " ".join(RELAY) + " ", line)
    return subprocess.run(["sh", "-c", line], cwd=ROOT, env=environment(), stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, timeout=50)  # fmt: skip


def text(address: tuple[str, int]) -> str:
    return f"{address[0]}:{address[1]}"


def test_the_first_configuration(tmp_path: Path, tls: Tls, upstream: str) -> None:
    page = "docs/getting-started.md"
    toml = listening(page_settings(page, "https"), upstream)
    with contextlib.ExitStack() as stack:
        relay = stack.enter_context(Relay(tmp_path, toml))
        (check,) = [line for line in page_commands(page, "relay") if "--connect" in line]
        done = tried(check, {"relay.toml": str(relay.config)}, tls)
        assert (done.returncode, done.stderr) == (0, "")
        changes = {"127.0.0.1:8443": text(relay.address("https")), "example.com": NAME}
        through, *metrics = page_commands(page, "curl")
        done = tried(through, changes, tls)
        assert (done.returncode, done.stdout) == (0, "from the upstream\n"), done
        (handshake,) = page_commands(page, "openssl")
        done = tried(handshake, changes, tls)
        assert done.returncode == 0
        assert "Verification: OK" in done.stderr
        admin = text(relay.address("admin"))
        (status,) = [line for line in page_commands(page, "relay") if line.startswith("relay status")]
        done = tried(status, {}, tls, f"http://{admin}")
        assert done.returncode == 0
        assert "https" in done.stdout
        (line,) = metrics
        done = tried(re.sub(r"127\.0\.0\.1:\d+", admin, line), {}, tls)
        assert "relay_connections_accepted_total" in done.stdout
        relay.wait_outcomes({"ok": 2})


def test_the_names_that_customers_may_ask_for(tmp_path: Path, tls: Tls, upstream: str) -> None:
    page = "docs/how-to/allow-only-your-customers.md"
    with Relay(tmp_path, listening(page_settings(page, "mqtt"), upstream)) as relay:
        changes = {"relay.example:8883": text(relay.address("mqtt")), "myhub.azure-devices.net": NAME}
        let_in, refused = page_commands(page, "openssl")
        done = tried(let_in, changes, tls)
        assert done.returncode == 0
        assert "Verification: OK" in done.stderr
        assert "# reset" in refused
        assert tried(refused, changes, tls).returncode != 0
        relay.wait_outcomes({"ok": 1, "refused_sni": 1})


def test_private_link_s_header(tmp_path: Path, tls: Tls, upstream: str) -> None:
    page = "docs/how-to/private-link-service.md"
    with Relay(tmp_path, listening(page_settings(page, "mqtt-private"), upstream)) as relay:
        address = relay.address("mqtt-private")
        changes = {"relay.example:18883": text(address), "myhub.azure-devices.net": NAME}
        (with_header,) = page_commands(page, "curl")
        done = tried(with_header, changes, tls)
        assert (done.returncode, done.stdout) == (0, "from the upstream\n"), done
        assert "SSL certificate verify ok" in done.stderr
        (without,) = page_commands(page, "openssl")
        assert tried(without, changes, tls).returncode != 0
        relay.wait_outcomes({"ok": 1, "refused_proxy": 1})


def test_one_address_for_several_hubs(tmp_path: Path) -> None:
    """With a stand-in for each of the names, whose certificate tells which one answered."""
    page = "docs/how-to/several-hubs.md"
    (short,) = [block.text for block in blocks.settings() if block.page == page and 'name = "hub2"' in block.text]
    names = re.findall(r'^upstream = \["(.*)"\]', short, flags=re.MULTILINE)
    assert len(names) == 4
    with Places(tmp_path, *names) as places, NameServer({name: ["127.0.0.1"] for name in names}) as server:
        (tmp_path / "short.toml").write_text(short)
        toml = render(load(tmp_path / "short.toml", {})).replace("nameservers = []", server.table().splitlines()[1])
        for name in names:  # each at a port of its own
            toml = re.sub(rf'"{re.escape(name)}:\d+"', f'"{places.at(name, by_name=True)}"', toml)
        toml = re.sub(r"^bind = \[.*$", 'bind = ["127.0.0.1:0"]', toml, flags=re.MULTILINE)
        toml = re.sub(r'^bind = ".*$', 'bind = "127.0.0.1:0"', toml, flags=re.MULTILINE)
        toml = toml.replace("\nworkers = 0\n", "\nworkers = 1\n").replace("announce = 15.0", "announce = 0.0")
        with Relay(tmp_path, toml) as relay:
            changes = {"relay.toml": str(relay.config), "relay.example:8883": text(relay.address("mqtt"))}
            *named, connect = [line for line in page_commands(page, "relay") if line.startswith("relay check")]
            for line, route in zip(named, ("dps", "hub2"), strict=True):
                done = tried(line, changes, places)
                assert (done.returncode, done.stderr) == (0, "")
                assert len(re.findall(rf": route {route}, to ", done.stdout)) == 3
            done = tried(connect, changes, places)
            assert (done.returncode, done.stderr) == (0, "")
            assert "myhub.device.azure-devices.net:8883: cannot be resolved" in done.stdout
            for line, route in zip(page_commands(page, "openssl"), ("dps", "hub2"), strict=True):
                done = tried(line, changes, places)
                assert done.returncode == 0
                assert "Verification: OK" in done.stderr
                relay.wait_status(lambda status, route=route: routed(status, route) == 1)  # type: ignore[misc]
            admin = text(relay.address("admin"))
            (status,) = [line for line in page_commands(page, "relay") if line.startswith("relay status")]
            done = tried(status, {}, places, f"http://{admin}")
            assert "mqtt.hub2" in done.stdout
            assert "mqtt.myhub.device" in done.stdout
            (metrics,) = page_commands(page, "curl")
            done = tried(metrics, {"127.0.0.1:8414": admin}, places)
            assert 'relay_route_connections_routed_total{listener="mqtt",route="dps"} 1.0' in done.stdout


def test_customers(tmp_path: Path) -> None:
    """Clients of loopback are contoso's; of its listeners, mqtt is tried."""
    page = "docs/how-to/customers.md"
    (short,) = [block.text for block in blocks.settings() if block.page == page]
    hub = "myhub.azure-devices.net"
    with Places(tmp_path, hub) as places, NameServer({hub: ["127.0.0.1"]}) as server:
        (tmp_path / "short.toml").write_text(short.replace('"2001:db8:40::/48"', '"2001:db8:40::/48", "127.0.0.1"'))
        toml = render(load(tmp_path / "short.toml", {})).replace("nameservers = []", server.table().splitlines()[1])
        toml = re.sub(rf'"{re.escape(hub)}:\d+"', f'"{places.at(hub, by_name=True)}"', toml)
        toml = re.sub(r"^bind = \[.*$", 'bind = ["127.0.0.1:0"]', toml, flags=re.MULTILINE)
        toml = re.sub(r'^bind = ".*$', 'bind = "127.0.0.1:0"', toml, flags=re.MULTILINE)
        toml = toml.replace("\nworkers = 0\n", "\nworkers = 1\n").replace("announce = 15.0", "announce = 0.0")
        with Relay(tmp_path, toml) as relay:
            admin, changes = text(relay.address("admin")), {"relay.toml": str(relay.config)}
            checks = [line for line in page_commands(page, "relay") if line.startswith("relay check")]
            *clients, whole = checks
            said = []
            for line in clients:
                done = tried(line, changes, places)
                assert (done.returncode, done.stderr) == (0, "")
                said.append(re.findall(r"^listener mqtt: (.*)$", done.stdout, flags=re.MULTILINE)[0])
            assert "customer contoso, at most 50/s of the customer, 5000 connections of the customer: " in said[0]
            assert "customer contoso-lab, at most 20 connections of the customer: " in said[1]
            assert said[2] == "a client from 198.51.100.1: no customer: refused (refused_access)"
            done = tried(whole, changes, places)
            assert (done.returncode, done.stderr) == (0, "")
            # Thousands: in files of their own, named at the top; the running relay takes them by a reload.
            (patterns,) = re.findall(r"`(include = \[.*?\])`", (ROOT / page).read_text())
            main, *customers = toml.partition("\n[[customers]]")
            (tmp_path / "customers.d").mkdir()
            (tmp_path / "customers.d/contoso.toml").write_text("".join(customers))
            relay.config.write_text(f"{patterns}\n" + re.sub(r"^include = .*$", "", main, flags=re.MULTILINE))
            for line in (whole, *[line for line in page_commands(page, "relay") if line.startswith("relay reload")]):
                done = tried(line, changes, places, f"http://{admin}")
                assert (done.returncode, done.stderr) == (0, ""), line
            with socket.create_connection(relay.address("mqtt"), timeout=10) as client:
                relay.wait_status(lambda status: [item["active"] for item in status["customers"]] == [1])
                (status,) = [line for line in page_commands(page, "relay") if line.startswith("relay status")]
                assert "contoso" in tried(status, {}, places, f"http://{admin}").stdout
                (metrics,) = page_commands(page, "curl")
                done = tried(metrics, {"127.0.0.1:8414": admin}, places)
                assert 'relay_customer_connections_active{customer="contoso"} 1' in done.stdout
                client.shutdown(socket.SHUT_WR)
            relay.wait_active(0)


def routed(status: Any, route: str) -> int:
    """Connections of the listener mqtt that took a route."""
    (mqtt,) = [item for item in status["listeners"] if item["name"] == "mqtt"]
    return int(next(item["accepted"] for item in mqtt["routes"] if item["name"] == route))
