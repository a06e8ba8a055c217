"""What can be found out about a relay that runs: whom it asks, and what it reads of a process in /proc."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from typing import Any

import pytest

from relay.address import format_hostport
from relay.commands import running
from relay.settings.model import Settings, load
from tests.support.programs import ROOT, START

LISTENER = '[{"name": "x", "bind": ["127.0.0.1:1"], "upstream": ["a.example:1"]}]'


def settings(admin: str) -> Settings:
    return load(None, {"RELAY_LISTENERS": LISTENER, "RELAY_ADMIN__BIND": admin})


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The URLs that were asked; a relay of an older version answers everywhere."""
    urls: list[str] = []

    def fetch(url: str) -> dict[str, Any]:
        urls.append(url)
        return {"pid": 7, "listeners": [{"bind": ["0.0.0.0:443", "[::]:443"]}]}

    monkeypatch.setattr(running, "fetch", fetch)
    return urls


def test_the_admin_port_of_this_machine_is_asked(asked: list[str]) -> None:
    found = running.find(settings("0.0.0.0:8414"))
    assert asked == ["http://127.0.0.1:8414"]
    assert found == running.Running(7, frozenset({"0.0.0.0:443", "[::]:443"}))


@pytest.mark.parametrize("admin", ["192.0.2.1:8414", "", "127.0.0.1:0"])
def test_another_machines_is_not(asked: list[str], admin: str) -> None:
    """Its relay's ports are none of this machine's (192.0.2.0/24, RFC 5737: nobody's)."""
    assert running.find(settings(admin)) is None
    assert asked == []


def test_the_addresses_at_which_a_process_listens() -> None:
    with ExitStack() as stack:
        made = [stack.enter_context(socket.create_server(("127.0.0.1", 0)))]
        made += [stack.enter_context(socket.create_server(("0.0.0.0", 0)))]
        if socket.has_dualstack_ipv6():
            made += [stack.enter_context(socket.create_server(("::1", 0), family=socket.AF_INET6))]
        addresses = {format_hostport(*sock.getsockname()[:2]) for sock in made}
        bound = stack.enter_context(socket.socket())
        bound.bind(("127.0.0.1", 0))
        stack.enter_context(socket.create_connection(made[0].getsockname()))
        found = running.listening(os.getpid())
        assert addresses <= found
        assert format_hostport(*bound.getsockname()) not in found
    assert not addresses & running.listening(os.getpid())


def test_the_variables_with_which_a_process_was_started() -> None:
    environ = {"PATH": os.environ["PATH"], "RELAY_UPSTREAM": "a=b,\xe9\n", "RELAY_ADMIN__BIND": "", "RELAYS": "1"}
    line = [
        sys.executable,
        "-c",
        "import os, sys; os.environ['RELAY_UPSTREAM'] = 'x'; print(flush=True); sys.stdin.read()",
    ]
    with subprocess.Popen(line, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert running.environment(process.pid) == {"RELAY_UPSTREAM": "a=b,\xe9\n", "RELAY_ADMIN__BIND": ""}
        process.communicate()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become nobody")
@pytest.mark.parametrize("read", ["environment", "listening"])
def test_another_users_process_is_closed(read: str) -> None:
    script = (
        f"import os, sys; from relay.commands.running import {read}; os.setgroups([]); os.setuid(65534)\n"
        f"try: {read}(int(sys.argv[1]))\nexcept PermissionError: sys.exit(0)\nsys.exit(1)"
    )
    line = [sys.executable, "-c", script, str(os.getpid())]
    assert subprocess.run(line, cwd=ROOT, timeout=START).returncode == 0


def test_a_process_that_cannot_be_read_leaves_things_unknown(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(pid: int) -> dict[str, str]:
        raise PermissionError(13, "")

    monkeypatch.setattr(running, "environment", closed)
    monkeypatch.setattr(running, "listening", closed)
    pid = os.getpid()
    found = running.inspect(pid, settings("127.0.0.1:8414"))
    assert found.addresses == frozenset(), "what answers there is process 7"
    assert found.unknown == (
        f"the environment of process {pid} cannot be compared: permission denied; check as its user, or as root",
        f"process {pid} cannot be asked at admin.bind (127.0.0.1:8414): settings that only a restart applies "
        "are not compared",
        f"the ports of process {pid} are unknown, and a port in use may be its own: permission denied",
    )
    assert running.reload_problems(found, settings(""), {}, lambda _: settings("")) == []
