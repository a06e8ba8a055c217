"""The log never stops the traffic: nobody reads it, the disk is full, it is switched off, it is for people."""

from __future__ import annotations

import os
import re
import signal
import time
from datetime import datetime, timedelta

import pytest

from tests.support.clients import connect, crowd, echoes, exchange, refused
from tests.support.harness import Relay, Start
from tests.support.observe import wait_until
from tests.support.programs import free_port
from tests.support.relay_toml import listener, settings
from tests.support.upstreams import Echo, refusing

QUIET = "[log]\naccess = false\n"
STAMP = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} [+-]\d{4}"
QUEUE = 10_000  # lines that a worker keeps for a reader


def admin_address() -> tuple[str, int]:
    """For an admin port that no log can tell."""
    return "127.0.0.1", free_port()


def at(toml: str, admin: tuple[str, int]) -> str:
    return toml.replace('[admin]\nbind = "127.0.0.1:0"', f'[admin]\nbind = "{admin[0]}:{admin[1]}"')


def ends(relay: Relay, number: signal.Signals) -> None:
    """Nobody reads the log, and the end does not wait for that."""
    relay.signal(number)
    assert relay.wait() == 0
    relay.check()


def test_a_pipe_that_nobody_reads(echo: Echo, start: Start) -> None:
    admin = admin_address()
    reading, writing = os.pipe()
    try:
        with refusing() as dead:  # and nobody listens there later
            toml = at(settings(listener(echo.address), listener(dead, name="dead")), admin)
        relay = start(toml, stdout=writing, admin=admin)
        # Every connection whose dial is refused is a line, and the cheapest way to one.
        with crowd(relay.address(), 300) as clients:
            relay.wait_active(300)
            for _ in range(QUEUE // 400 + 3):
                with crowd(relay.address("dead"), 400) as more:
                    assert more.refused == 400
            status = relay.wait_status(lambda status: status["log_lines_dropped"] > 0, what="lines dropped")
            assert relay.metrics().value("relay_log_lines_dropped_total") >= status["log_lines_dropped"]
            assert all(exchange(client) == b"ping" for client in clients.served)
        relay.wait_active(0)
        assert echoes(relay.address())
        assert relay.get("/livez") == (200, "ok\n")
        ends(relay, signal.SIGTERM)
    finally:
        os.close(reading)
        os.close(writing)


@pytest.mark.parametrize("access", [True, False])
def test_a_full_disk(echo: Echo, start: Start, access: bool) -> None:
    admin = admin_address()
    with open("/dev/full", "wb") as full:  # noqa: PTH123 - Path.open would be buffered as well, and reads no better
        relay = start(
            at(settings(listener(echo.address), tables="" if access else QUIET), admin), stdout=full, admin=admin
        )
        relay.wait_status(lambda status: status["log_lines_dropped"] > 0, what="lines of the start dropped")
        for _ in range(50):
            assert echoes(relay.address())
        relay.wait_outcomes({"ok": 50})
        if access:
            relay.wait_status(lambda status: status["log_lines_dropped"] >= 50, what="50 lines dropped")
        else:
            assert relay.status()["log_lines_dropped"] < 50
        ends(relay, signal.SIGTERM)


def test_a_reader_that_went_away(echo: Echo, start: Start) -> None:
    admin = admin_address()
    reading, writing = os.pipe()
    relay = start(at(settings(listener(echo.address)), admin), stdout=writing, admin=admin)
    os.close(writing)
    os.close(reading)
    for _ in range(20):
        assert echoes(relay.address())
    relay.wait_status(lambda status: status["log_lines_dropped"] >= 20)
    ends(relay, signal.SIGTERM)


def test_without_an_access_log(echo: Echo, start: Start) -> None:
    relay = start(settings(listener(echo.address), tables=QUIET))
    assert all(echoes(relay.address()) for _ in range(5))
    relay.wait_outcomes({"ok": 5})
    relay.stop()
    assert relay.events("connection") == []
    (last,) = relay.events("stopped")
    assert last["outcomes"] == {"ok": 5}


def test_the_console_format_is_for_people(echo: Echo, start: Start) -> None:
    admin = admin_address()
    toml = at(settings(listener(echo.address), tables='[log]\nformat = "console"\n'), admin)
    relay = start(toml, admin=admin)
    with connect(relay.address()) as client:
        assert exchange(client, b"x" * 1000) == b"x" * 1000
    relay.wait_outcomes({"ok": 1})
    relay.signal(signal.SIGTERM)
    assert relay.wait() == 0
    text = relay.log.read_text()
    for event in ("starting", "listening", "ready", "draining", "stopped"):
        assert event in text
    assert "\x1b" not in text  # no colours in a file
    assert "{" not in text.replace("outcomes={", "").splitlines()[0]
    (line,) = [line for line in text.splitlines() if " main: " in line]
    assert re.fullmatch(
        rf"{STAMP} main: 127\.0\.0\.1:\d+ -> 127\.0\.0\.1:\d+ ok \(--\) up 1000 B down 1000 B "
        r"connect \d\S* ms total \d\S* m?s",
        line,
    )
    assert all(re.match(rf"{STAMP} ", line) for line in text.splitlines()), text


def test_the_console_format_has_local_time(echo: Echo, start: Start) -> None:
    admin = admin_address()
    toml = at(settings(listener(echo.address), tables='[log]\nformat = "console"\n'), admin)
    began = time.time() - 1
    relay = start(toml, admin=admin, environ={"TZ": "XYZ-05:45"})  # east of Greenwich, tzset(3)
    assert echoes(relay.address())
    relay.wait_outcomes({"ok": 1})
    relay.signal(signal.SIGTERM)
    assert relay.wait() == 0
    lines = relay.log.read_text().splitlines()
    assert [line for line in lines if " main: " in line]
    for line in lines:
        at_time = datetime.strptime(line[:29], "%Y-%m-%d %H:%M:%S.%f %z")
        assert at_time.utcoffset() == timedelta(hours=5, minutes=45)
        assert began <= at_time.timestamp() <= time.time()


def test_the_console_format_names_an_error(start: Start) -> None:
    admin = admin_address()
    with refusing() as dead:
        relay = start(at(settings(listener(dead), tables='[log]\nformat = "console"\n'), admin), admin=admin)
        assert refused(relay.address())
        relay.wait_outcomes({"dial_refused": 1})
    relay.signal(signal.SIGTERM)
    assert relay.wait() == 0
    assert " dial_refused (SC) ECONNREFUSED up 0 B down 0 B " in relay.log.read_text()


def test_the_level_cuts_the_service_log_and_not_the_access_log(echo: Echo, start: Start) -> None:
    admin = admin_address()
    relay = start(at(settings(listener(echo.address), tables='[log]\nlevel = "warning"\n'), admin), admin=admin)
    assert echoes(relay.address())
    relay.access(1)
    relay.config.write_text("workers = [")
    relay.expected_errors.add("reload failed")
    relay.signal(signal.SIGHUP)
    ends = relay.wait_outcomes({"ok": 1})
    assert ends["log_lines_dropped"] == 0
    wait_until(lambda: relay.events("reload failed"), what="the reload")
    relay.signal(signal.SIGINT)
    assert relay.wait() == 0
    assert [line["event"] for line in relay.log_lines()] == ["connection", "reload failed"]


def test_lines_of_several_processes_do_not_mix(echo: Echo, start: Start) -> None:
    relay = start(settings(listener(echo.address), workers=3))
    for _ in range(3):
        with crowd(relay.address(), 300) as clients:
            assert len(clients.served) == 300
        relay.wait_active(0)
    lines = relay.access(900)  # each of them parsed
    assert len({line["client"] for line in lines}) > 300
