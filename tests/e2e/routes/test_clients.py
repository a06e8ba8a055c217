"""One address, several names: real TLS clients reach the one that they ask for, and verify it."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import subprocess
from pathlib import Path

import pytest

from tests.e2e.routes.places import DEVICE, DPS, HUB, STORE, Places, route, word_of
from tests.support.harness import Relay, Start
from tests.support.relay_toml import listener, settings
from tests.support.tls import Tls

needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
needs_go = pytest.mark.skipif(shutil.which("go") is None, reason="go is not installed")
NAMES = (HUB, DEVICE, DPS, STORE)


def begin(start: Start, places: Places, sni: str = "") -> Relay:
    """The hub is the listener's own; the others have a route each, the store by a suffix."""
    routes = route("dps", DPS, to=places.at(DPS)) + route("device", DEVICE, to=places.at(DEVICE))
    routes += route("store", "*.core.windows.net", to=places.at(STORE))
    return start(settings(listener(places.at(HUB), more=sni + routes), workers=2))


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["TLS 1.2", "TLS 1.3"])
def test_python(places: Places, start: Start, version: ssl.TLSVersion) -> None:
    relay = begin(start, places)
    for name in NAMES:
        assert places.ask(relay.address(), name, version) == word_of(name)
    assert places.ask(relay.address(), None, version) == word_of(HUB), "no name goes to the listener's own"
    relay.wait_outcomes({"ok": 5})
    assert places.served() == {HUB: 2, DEVICE: 1, DPS: 1, STORE: 1}
    lines = {line["sni"]: line for line in relay.access(5)}
    routes = {HUB: "", DEVICE: "device", DPS: "dps", STORE: "store", "": ""}
    assert {name: line["route"] for name, line in lines.items()} == routes
    assert all(line["upstream"] == places.at(name or HUB) for name, line in lines.items())
    metrics = relay.metrics()
    for name in ("device", "dps", "store"):
        assert metrics.value("relay_route_connections_routed_total", listener="main", route=name) == 1
        assert metrics.value("relay_route_connections_total", listener="main", route=name, outcome="ok") == 1
        assert metrics.value("relay_route_connections_active", listener="main", route=name) == 0
        assert metrics.value("relay_route_up", listener="main", route=name) == 1
        for direction in ("up", "down"):
            (line,) = [line for line in lines.values() if line["route"] == name]
            counted = metrics.value("relay_route_bytes_total", listener="main", route=name, direction=direction)
            assert counted == line[f"bytes_{direction}"] > 100


@needs_curl
def test_curl(places: Places, start: Start) -> None:
    relay = begin(start, places)
    host, port = relay.address()
    for name in NAMES:
        line = ["curl", "--silent", "--noproxy", "*", "--http1.1", "--cacert", str(places.authority)]
        line += ["--resolve", f"{name}:{port}:{host}", f"https://{name}:{port}/"]
        result = subprocess.run(line, capture_output=True, timeout=30, text=True)
        assert (result.returncode, result.stdout) == (0, word_of(name)), result.stderr
    assert places.served() == dict.fromkeys(NAMES, 1)


@needs_openssl
@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_openssl(places: Places, start: Start, version: str) -> None:
    relay = begin(start, places, sni=f'sni = ["{HUB}"]\n')
    host, port = relay.address()
    line = ["openssl", "s_client", "-connect", f"{host}:{port}", "-CAfile", str(places.authority), "-quiet", version]
    line += ["-verify_return_error"]
    for name in NAMES:
        result = subprocess.run(
            [*line, "-servername", name, "-verify_hostname", name, "-ign_eof"],
            input=b"hello\n",
            capture_output=True,
            timeout=30,
        )
        assert word_of(name).encode() in result.stdout, result
    for arguments in (["-servername", "other.example"], ["-noservername"]):
        result = subprocess.run([*line, *arguments], input=b"", capture_output=True, timeout=30)
        assert result.returncode != 0
    assert places.served() == dict.fromkeys(NAMES, 1)
    relay.wait_outcomes({"ok": 4, "refused_sni": 2})


GO = """\
package main

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"os"
)

func main() {
	pem, _ := os.ReadFile(os.Args[2])
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	for _, name := range os.Args[3:] {
		connection, err := tls.Dial("tcp", os.Args[1], &tls.Config{ServerName: name, RootCAs: roots})
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Fprintf(connection, "hello\\n")
		answer, _ := io.ReadAll(connection)
		fmt.Printf("%s\\n", answer)
		connection.Close()
	}
}
"""


@needs_go
@pytest.mark.timeout(180)  # go builds its standard library first
def test_go(places: Places, start: Start, tmp_path: Path) -> None:
    program = tmp_path / "ask.go"
    program.write_text(GO)
    relay = begin(start, places)
    cache = {"GOCACHE": str(tmp_path / "cache"), "GOFLAGS": "-mod=mod", "GO111MODULE": "off", "HOME": str(tmp_path)}
    result = subprocess.run(
        ["go", "run", str(program), "{}:{}".format(*relay.address()), str(places.authority), *NAMES],
        env={**os.environ, **cache},
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert result.returncode == 0, result
    assert [line for line in result.stdout.splitlines() if "this is" in line] == [word_of(name) for name in NAMES]
    assert places.served() == dict.fromkeys(NAMES, 1)


def test_tls_of_the_hub_is_never_terminated(places: Places, start: Start, tmp_path: Path) -> None:
    """A client that trusts another authority than the stand-in's sees the stand-in's own certificate, and refuses."""
    relay = begin(start, places)
    other = ssl.create_default_context(cafile=str(Tls(tmp_path).authority))
    with (
        socket.create_connection(relay.address(), 10) as sock,
        pytest.raises(ssl.SSLCertVerificationError),
        other.wrap_socket(sock, server_hostname=DPS),
    ):
        pass
    relay.wait_active(0)
    assert places.served()[DPS] == 1
