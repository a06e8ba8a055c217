"""A settings file that hangs, is none, or sets nothing any more: the relay goes on as it is, and answers."""

from __future__ import annotations

import os
import signal
import socket
import threading
from pathlib import Path

import pytest

from tests.e2e.lifecycle.test_drain import command
from tests.e2e.lifecycle.test_reload import change
from tests.support.clients import echoes
from tests.support.harness import Relay, Start
from tests.support.hung_file import hung
from tests.support.observe import wait_until
from tests.support.relay_toml import listener, settings
from tests.support.upstreams import Echo

ACCESS = '[access]\nallow = ["127.0.0.0/8"]\n'
FROM_ENVIRONMENT = {
    "RELAY_WORKERS": "1",
    "RELAY_ADMIN__BIND": "127.0.0.1:0",
    "RELAY_HEALTH__BIND": "127.0.0.1:0",
    "RELAY_HEALTH_CHECK__INTERVAL": "0",
}


def serves(relay: Relay) -> None:
    """Whether everybody still gets an answer."""
    for port in ("admin", "health"):
        for path in ("/livez", "/readyz"):
            assert relay.get(path, port) == (200, "ok\n")
    assert echoes(relay.address())


def is_being_read(relay: Relay) -> bool:
    """Whether a process reads its settings file at this moment."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if b"settings/file_reader.py" in line and os.fsencode(relay.config) in line:
            return True
    return False


class Posted:
    """POST /reload in a thread."""

    def __init__(self, relay: Relay) -> None:
        self.answer: tuple[int, str] | None = None
        self._relay = relay
        self._thread = threading.Thread(target=self._post)
        self._thread.start()

    def _post(self) -> None:
        self.answer = self._relay.post("/reload")

    def result(self) -> tuple[int, str]:
        self._thread.join(20)
        assert self.answer is not None
        return self.answer


def test_a_file_system_that_hangs_stops_nobody(echo: Echo, start: Start) -> None:
    relay = start(settings(listener(echo.address)))
    relay.expected_errors.add("reload failed")
    with hung(relay.config):
        first = Posted(relay)
        wait_until(lambda: is_being_read(relay), what="reading")
        second = Posted(relay)
        serves(relay)
        for code, text in (first.result(), second.result()):
            assert code == 409
            assert "not read within 5 s" in text
            assert str(relay.config) in text
        assert not is_being_read(relay), "the second did not have to hang as well"
        serves(relay)
    assert command(relay, "reload").stdout == "reloaded\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_nor_does_it_stop_the_end(echo: Echo, start: Start, number: signal.Signals) -> None:
    relay = start(settings(listener(echo.address)))
    with hung(relay.config):
        relay.signal(signal.SIGHUP)
        wait_until(lambda: is_being_read(relay), what="reading")
        relay.signal(number)
        assert relay.wait() == 0
        wait_until(lambda: not is_being_read(relay), what="nobody reading for nobody")
    relay.check()


def test_a_drain_that_begins_while_it_is_read_is_not_undone(echo: Echo, start: Start) -> None:
    relay = start(settings(listener(echo.address)))
    relay.expected_errors.add("reload failed")
    with hung(relay.config):
        posted = Posted(relay)
        wait_until(lambda: is_being_read(relay), what="reading")
        assert relay.post("/drain")[0] == 202
    code, text = posted.result()
    assert (code, text.startswith("draining")) == (409, True)
    relay.wait_phase("drained")


def test_a_fifo_and_a_directory_are_no_settings_files(echo: Echo, start: Start) -> None:
    relay = start(settings(listener(echo.address)))
    relay.expected_errors.add("reload failed")
    text = relay.config.read_text()
    for make, kind in ((os.mkfifo, "a pipe"), (os.mkdir, "a directory")):
        relay.config.unlink()
        make(relay.config)
        code, said = relay.post("/reload")
        assert (code, f"--config {relay.config}: is {kind}" in said) == (409, True)
        serves(relay)
        relay.config.rename(relay.config.with_name(kind))
        relay.config.write_text(text)
        assert relay.post("/reload") == (200, "ok\n")


@pytest.mark.parametrize("text", ["", "# [access]\n# allow = []\n"], ids=["empty", "commented"])
def test_a_file_that_has_become_empty_lets_nobody_else_in(echo: Echo, start: Start, text: str) -> None:
    upstream = f'[{{"name":"main","bind":["127.0.0.1:0"],"upstream":["{echo.address[0]}:{echo.address[1]}"]}}]'
    relay = start(ACCESS, environ={**FROM_ENVIRONMENT, "RELAY_LISTENERS": upstream})
    relay.expected_errors.add("reload failed")
    code, said = change(relay, text)
    assert code == 409
    assert f"{relay.config} sets nothing" in said
    assert "access.allow" in said
    serves(relay)
    assert change(relay, ACCESS.replace("127.0.0.0/8", "192.0.2.0/24")) == (200, "ok\n")
    wait_until(lambda: not let_in(relay), what="the list in effect")
    assert change(relay, text)[0] == 409
    assert not let_in(relay)
    assert not relay.events("access restrictions removed")


def let_in(relay: Relay) -> bool:
    try:
        return echoes(relay.address())
    except ConnectionError:
        return False


def test_a_reload_that_removes_access_restrictions_says_so(echo: Echo, start: Start) -> None:
    sni = listener(echo.address, name="tls", more='sni = ["a.example"]')
    limits = "[limits]\nmax_connections_per_source = 50\nconnect_rate_per_source = 50.0\n"
    relay = start(settings(listener(echo.address), sni, tables=ACCESS + limits))
    assert change(relay, settings(listener(echo.address), sni, tables=limits))[0] == 200
    (line,) = relay.told("access restrictions removed")
    assert (line["level"], line["settings"]) == ("warning", ["access.allow"])
    assert line["left"] == ["limits.connect_rate_per_source", "limits.max_connections_per_source", "listeners.tls.sni"]
    assert change(relay, settings(listener(echo.address), listener(echo.address, name="tls")))[0] == 200
    line = relay.told("access restrictions removed", 2)[1]
    assert line["settings"] == [
        "limits.connect_rate_per_source",
        "limits.max_connections_per_source",
        "listeners.tls.sni",
    ]
    assert line["left"] == []
    assert change(relay, settings(listener(echo.address)))[0] == 200, "there is nothing left to remove"
    assert relay.post("/reload")[0] == 200
    assert len(relay.told("reloaded", 4)) == 4
    assert len(relay.events("access restrictions removed")) == 2


def test_many_reloads_at_once_are_all_answered_and_the_last_change_counts(echo: Echo, start: Start) -> None:
    relay = start(settings(listener(echo.address)))
    for number in range(5):
        relay.config.write_text(settings(listener(echo.address), listener(echo.address, name=f"n{number}")))
        posted = [Posted(relay) for _ in range(5)]
        relay.signal(signal.SIGHUP)
        assert [one.result() for one in posted] == [(200, "ok\n")] * 5
        assert [one["name"] for one in relay.status()["listeners"] if one["bind"]] == ["main", f"n{number}"]
    serves(relay)


def test_the_service_manager_is_told_of_a_reload_from_its_beginning_to_its_end(
    echo: Echo, start: Start, tmp_path: Path
) -> None:
    address = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(address))
        manager.settimeout(20)

        def told(*names: str) -> str:
            while True:
                for line in manager.recv(4096).decode().splitlines():
                    name = line.partition("=")[0]
                    if name in names:
                        return name

        relay = start(settings(listener(echo.address)), environ={"NOTIFY_SOCKET": str(address)})
        assert told("READY", "RELOADING") == "READY"
        with hung(relay.config):
            relay.signal(signal.SIGHUP)
            assert told("READY", "RELOADING") == "RELOADING"
            wait_until(lambda: is_being_read(relay), what="reading")
            posted = Posted(relay)
            serves(relay)
        assert posted.result()[0] == 200
        assert told("READY", "RELOADING") == "READY"
        relay.told("reloaded", 2)
