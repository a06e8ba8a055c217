"""Workers that were taken over: whatever they write where the supervisor reads, it lives on and says what is so."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import threading
from collections.abc import Iterator

import pytest

from tests.support.clients import connect, echoes, exchange
from tests.support.harness import Json, Relay, Start
from tests.support.observe import alive, descriptors, wait_until
from tests.support.possessed import heartbeats, memory, shared_file, voice
from tests.support.relay_toml import listener, settings
from tests.support.upstreams import Echo

HANG = "[supervision]\nhang_timeout = 4.0\n"
NO_HANG = "[supervision]\nhang_timeout = 0.0\n"
FAILING = json.dumps({"kind": "failing", "hosts": ["other.example", "127.0.0.1"]}).encode()
LINE = json.dumps({"kind": "log", "level": "info", "logger": "relay", "text": "x" * 100}).encode()
LONG = json.dumps({"kind": "log", "level": "bind", "logger": "x" * 1000, "text": "y" * 100_000}).encode()
RUBBISH = {  # tests/ipc/test_channel.py has more
    "list": b"[]",
    "not a worker's": b'{"kind": "stop"}',
    "fields of another type": b'{"kind": "failing", "hosts": 5}',
    "nested": b"[" * 100_000,
    "too long": b"x" * (1 << 17 | 1),
}


@pytest.fixture
def pair(echo: Echo, start: Start) -> Relay:
    """A relay of two workers that may be killed."""
    relay = start(settings(listener(echo.address), workers=2, tables=HANG))
    relay.expected_errors |= {"worker died", "worker killed", "bad message from worker"}
    return relay


def replaced(relay: Relay, victim: int) -> Json:
    """The status once there is a successor that accepts."""
    return relay.wait_status(
        lambda status: all(one["ready"] and one["pid"] != victim for one in status["workers"]), 30, "a successor"
    )


@pytest.mark.parametrize("data", RUBBISH.values(), ids=RUBBISH)
def test_a_worker_that_sends_rubbish_is_replaced(pair: Relay, data: bytes) -> None:
    victim = pair.worker_pids()[0]
    with voice(victim) as channel:
        channel.send(data)
        status = replaced(pair, victim)
    assert status["workers"][0]["restarts"] == 1
    assert pair.get("/readyz") == (200, "ok\n")
    (line,) = pair.told("bad message from worker")
    assert (line["level"], line["worker"]) == ("error", 0)
    (line,) = pair.told("worker died")
    assert (line["pid"], line["how"]) == (victim, "signal SIGKILL")
    assert all(echoes(pair.address()) for _ in range(10))


@pytest.mark.parametrize("data", RUBBISH.values(), ids=RUBBISH)
def test_a_worker_that_sends_rubbish_and_dies_is_replaced(pair: Relay, data: bytes) -> None:
    victim = pair.worker_pids()[0]
    with voice(victim) as channel:
        pair.signal(signal.SIGSTOP)
        channel.send(data)
        channel.send(data)
        os.kill(victim, signal.SIGKILL)
        pair.signal(signal.SIGCONT)
        status = replaced(pair, victim)
    assert status["workers"][0]["restarts"] == 1
    assert pair.get("/readyz") == (200, "ok\n")
    assert len(pair.told("bad message from worker")) == 1
    assert len(pair.told("worker died")) == 1
    assert all(echoes(pair.address()) for _ in range(10))


def test_a_worker_that_closes_its_channel_and_lives_on_is_replaced(echo: Echo, start: Start) -> None:
    relay = start(settings(listener(echo.address), workers=2, tables=NO_HANG))
    relay.expected_errors |= {"worker died", "worker killed"}
    victim = relay.worker_pids()[0]
    os.kill(victim, signal.SIGSTOP)  # it would end by itself
    with voice(victim) as channel:
        channel.shutdown(socket.SHUT_RDWR)
        replaced(relay, victim)
    (line,) = relay.told("worker killed")
    assert line["reason"] == "closed its control channel"


def test_descriptors_that_a_worker_sends_are_refused_or_closed(pair: Relay) -> None:
    victim = pair.worker_pids()[0]
    before = len(descriptors(pair.process.pid))
    with voice(victim) as channel, socket.socket() as sock:
        try:
            for _ in range(20):
                socket.send_fds(channel, [FAILING], [sock.fileno()] * 250)
        except PermissionError:  # since Linux 6.16
            assert alive(victim)
        except ConnectionError:
            replaced(pair, victim)
        else:
            replaced(pair, victim)
    wait_until(
        lambda: len(descriptors(pair.process.pid)) <= before + 1,  # the admin port's connection comes and goes
        what=lambda: f"{before} descriptors as before, now {len(descriptors(pair.process.pid))}",
    )


@contextlib.contextmanager
def flood(pid: int, data: bytes) -> Iterator[None]:
    """Send as much as the channel takes, all the time."""
    over = threading.Event()

    def send(channel: socket.socket) -> None:
        channel.settimeout(0.1)
        while not over.is_set():
            with contextlib.suppress(TimeoutError, ConnectionError):
                channel.send(data)

    with voice(pid) as channel:
        thread = threading.Thread(target=send, args=[channel])
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


@pytest.mark.parametrize("data", [FAILING, LINE, LONG], ids=["failing", "lines", "long lines"])
def test_a_flood_of_valid_messages_keeps_nobody_waiting(echo: Echo, start: Start, data: bytes) -> None:
    relay = start(settings(listener(echo.address), workers=2, tables=NO_HANG))
    victim, other = relay.worker_pids()
    relay.expected_errors |= {"worker died", "y" * 2000}
    with flood(victim, data):
        for _ in range(20):
            assert relay.get("/readyz", "health")[0] == 200
            assert relay.status()["workers"][1]["pid"] == other
        if data is not FAILING:
            (line,) = relay.told("worker says too much for the log")
            assert (line["level"], line["worker"]) == ("warning", 0)
            assert line["lines_dropped"] > 0
        os.kill(victim, signal.SIGKILL)  # and this process goes on where it was
        replaced(relay, victim)
    assert relay.log.stat().st_size < 2_000_000
    assert all(echoes(relay.address()) for _ in range(10))


def test_a_log_line_of_a_worker_is_bounded_and_has_a_level_that_there_is(pair: Relay) -> None:
    with voice(pair.worker_pids()[1]) as channel:
        channel.send(LONG)
    (line,) = pair.told("y" * 2000)
    pair.expected_errors.add("y" * 2000)
    assert (line["level"], line["worker"], line["logger"]) == ("error", 1, "x" * 100)


@pytest.mark.parametrize("name", ["relay-table", "relay-rates"])
def test_a_worker_that_truncates_what_all_share(pair: Relay, name: str) -> None:
    workers = pair.worker_pids()
    descriptor = shared_file(workers[0], name)
    try:
        with connect(pair.address()) as client:
            assert exchange(client) == b"ping"
            with contextlib.suppress(PermissionError):
                os.ftruncate(descriptor, 0)
            assert pair.status()["connections"]["active"] == 1
            assert exchange(client) == b"ping"
            assert all(echoes(pair.address()) for _ in range(10))
            assert all(map(alive, workers))
    finally:
        os.close(descriptor)
    pair.wait_outcomes({"ok": 11})


def test_a_worker_that_hangs_and_has_heartbeats_in_the_future_is_replaced(pair: Relay) -> None:
    victim = pair.worker_pids()[0]
    pair.expected_errors.add("worker hangs")
    with memory(victim) as cells:
        beats = heartbeats(cells, 2)
        os.kill(victim, signal.SIGSTOP)
        for cell in beats:
            cells[cell] = 1 << 63  # the other one writes its own again
        wait_until(lambda: pair.get("/livez")[0] == 503, what="not live")
        replaced(pair, victim)
    wait_until(lambda: pair.get("/livez") == (200, "ok\n"), what="live again")


@pytest.mark.parametrize("pattern", ["ones", "random", "halves"])
def test_a_worker_that_fills_the_table_with_nonsense(echo: Echo, start: Start, pattern: str) -> None:
    relay = start(settings(listener(echo.address), workers=2, tables=NO_HANG))
    relay.expected_errors |= {"worker died"}
    workers = relay.worker_pids()
    assert all(echoes(relay.address()) for _ in range(10))
    before = relay.wait_outcomes({"ok": 10})["connections"]["accepted"]
    number = random.Random(7)
    values = {"ones": lambda: (1 << 64) - 1, "halves": lambda: 1 << 63, "random": lambda: number.getrandbits(64)}
    for pid in workers:  # they would not bear it
        os.kill(pid, signal.SIGSTOP)
    with memory(workers[0]) as cells:
        for cell in range(len(cells)):
            cells[cell] = values[pattern]()
    status = relay.status()
    assert 0 <= status["connections"]["active"] <= 2 * status["descriptors"] * 20
    first = relay.metrics().counters()
    with memory(workers[0]) as cells:
        for cell in range(len(cells)):
            cells[cell] = 0
    second = relay.metrics().counters()
    assert all(second[key] >= value for key, value in first.items()), "no counter goes back"
    with memory(workers[0]) as cells:
        for cell in range(len(cells)):
            cells[cell] = values[pattern]()
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    relay.wait_status(lambda status: all(one["ready"] for one in status["workers"]), 30, "successors")
    third = relay.metrics().counters()
    assert all(third[key] >= value for key, value in second.items()), "not when they die either"
    assert all(echoes(relay.address()) for _ in range(10))
    status = relay.wait_status(lambda status: status["connections"]["active"] == 0, what="all accounted for")
    assert status["connections"]["admitted"] == 0
    assert status["connections"]["accepted"] >= before + 10
