"""What the service manager gets to read from relay, and that nothing it does can hold relay up."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from relay.supervisor.systemd.notify import (
    GRACE,
    INTERVAL,
    INTERVAL_CHANGING,
    PINGS,
    Notifier,
    Reporter,
    ServiceStatus,
)


class Manager:
    """The service manager's end."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.socket.bind(address.replace("@", "\0", 1))
        self.environ = {"NOTIFY_SOCKET": address, "PATH": "/bin"}

    def received(self) -> list[dict[str, str]]:
        found: list[dict[str, str]] = []
        while True:
            try:
                message = self.socket.recv(65536).decode()
            except BlockingIOError:
                return found
            found.append(dict(line.split("=", 1) for line in message.split("\n")))


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    made = Manager(str(tmp_path / "notify") if request.param == "path" else f"@relay-test-{os.getpid()}")
    yield made
    made.socket.close()


# --- messages --------------------------------------------------------------------------------------------------------


def test_each_message_is_as_the_manager_expects_it(manager: Manager) -> None:
    notifier = Notifier(manager.environ | {"WATCHDOG_USEC": "30000000"})
    assert notifier.active
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    notifier.ready("serving")
    notifier.status("busy")
    notifier.reloading()
    notifier.reloaded()
    notifier.watchdog()
    notifier.extend_timeout(1.5)
    notifier.stopping("draining")
    *first, reloading, ready, watchdog, extend, stopping = manager.received()
    assert first == [{"READY": "1", "STATUS": "serving"}, {"STATUS": "busy"}]
    assert before <= int(reloading.pop("MONOTONIC_USEC")) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    assert (reloading, ready) == ({"RELOADING": "1"}, {"READY": "1"})
    assert (watchdog, extend) == ({"WATCHDOG": "1"}, {"EXTEND_TIMEOUT_USEC": "1500000"})
    assert stopping == {"STOPPING": "1", "STATUS": "draining"}
    assert notifier.problem == ""


def test_the_variables_are_taken_out_of_the_environment(manager: Manager) -> None:
    environ = manager.environ | {"WATCHDOG_USEC": "1", "WATCHDOG_PID": "1"}
    Notifier(environ)
    assert environ == {"PATH": "/bin"}


def test_a_status_is_one_line_and_not_endless(manager: Manager) -> None:
    notifier = Notifier(manager.environ)
    notifier.status("a\nREADY=1\n\nb")
    notifier.status("x" * 10_000)
    first, second = manager.received()
    assert first == {"STATUS": "a READY=1 b"}
    assert len(second["STATUS"]) == 500


@pytest.mark.parametrize("begin", ["nothing said", "stopping"])
def test_a_reload_is_nobodys_affair_while_starting_or_stopping(manager: Manager, begin: str) -> None:
    notifier = Notifier(manager.environ)
    if begin == "stopping":
        notifier.ready()
        notifier.stopping()
        manager.received()
    notifier.reloading()
    notifier.reloaded()
    assert manager.received() == []


def test_a_stop_during_a_reload_is_not_taken_back(manager: Manager) -> None:
    notifier = Notifier(manager.environ)
    notifier.ready()
    notifier.reloading()
    notifier.stopping()
    notifier.reloaded()
    assert list(manager.received()[-1]) == ["STOPPING"]


# --- managers that are not there, or do not read --------------------------------------------------------------------


def say_everything(notifier: Notifier) -> None:
    notifier.ready("a")
    notifier.reloading()
    notifier.reloaded("b")
    notifier.status("c")
    notifier.watchdog()
    notifier.extend_timeout(1)
    notifier.stopping()


@pytest.mark.parametrize(
    ("environ", "active"),
    [
        ({}, False),
        ({"NOTIFY_SOCKET": ""}, False),
        ({"NOTIFY_SOCKET": "vsock:2:1234"}, False),
        ({"NOTIFY_SOCKET": "/nowhere/at/all"}, True),
        ({"NOTIFY_SOCKET": "@nobody-listens-there"}, True),
        ({"NOTIFY_SOCKET": "/" + "long" * 100}, True),
        ({"NOTIFY_SOCKET": "/\udcff"}, True),
    ],
)
def test_without_a_manager_nothing_happens(environ: dict[str, str], active: bool) -> None:
    told = bool(environ.get("NOTIFY_SOCKET"))
    notifier = Notifier(environ)
    say_everything(notifier)
    assert notifier.active is active
    assert bool(notifier.problem) is told


def test_a_manager_that_does_not_read_holds_nothing_up_and_gets_the_rest_later(manager: Manager) -> None:
    notifier = Notifier(manager.environ)
    began = time.monotonic()
    for number in range(2000):  # net.unix.max_dgram_qlen is far less
        notifier.status(str(number))
    notifier.ready()
    notifier.reloading()
    notifier.reloaded("at last")
    assert time.monotonic() - began < 5
    assert 0 < len(manager.received()) < 2000
    notifier.extend_timeout(1)
    assert manager.received() == [{"STATUS": "at last", "READY": "1", "EXTEND_TIMEOUT_USEC": "1000000"}]
    notifier.watchdog()
    assert manager.received() == []  # it asked for none


def test_a_manager_that_comes_back_is_told_again(manager: Manager) -> None:
    address = manager.socket.getsockname()
    notifier = Notifier(manager.environ)
    manager.socket.close()
    if isinstance(address, str):
        Path(address).unlink()
    notifier.status("nobody hears")
    assert notifier.problem
    manager.__init__(manager.environ.get("NOTIFY_SOCKET") or _name(address))  # type: ignore[misc]
    notifier.status("here again")
    assert manager.received() == [{"STATUS": "here again"}]
    assert notifier.problem == ""


def _name(address: str | bytes) -> str:
    return address if isinstance(address, str) else address.decode().replace("\0", "@", 1)


# --- watchdog --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("usec", "pid", "seconds"),
    [
        ("60000000", "", 60.0),
        ("1500000", "own", 1.5),
        ("60000000", "1", 0.0),
        ("", "", 0.0),
        ("0", "", 0.0),
        ("-5", "", 0.0),
        ("soon", "", 0.0),
    ],
)
def test_the_watchdog_is_for_whom_the_manager_names(usec: str, pid: str, seconds: float) -> None:
    environ = {"WATCHDOG_USEC": usec, "WATCHDOG_PID": pid.replace("own", str(os.getpid()))}
    assert Notifier(environ).watchdog_seconds == seconds


# --- when what is said ----------------------------------------------------------------------------------------------


def test_a_life_in_order(manager: Manager) -> None:
    now = ServiceStatus(False, True, None, "starting")
    reporter = Reporter(Notifier(manager.environ), lambda: now)

    def says(status: ServiceStatus) -> tuple[list[dict[str, str]], float]:
        nonlocal now
        now = status
        wait = reporter.update()
        return manager.received(), wait

    assert says(now) == ([{"STATUS": "starting"}], INTERVAL_CHANGING)
    assert says(now) == ([], INTERVAL_CHANGING)
    assert says(ServiceStatus(True, True, None, "ready")) == ([{"READY": "1", "STATUS": "ready"}], INTERVAL)
    assert says(now) == ([], INTERVAL)
    # Ready is said once: a worker that is being replaced is no other state of the unit.
    assert says(ServiceStatus(False, True, None, "a worker died")) == ([{"STATUS": "a worker died"}], INTERVAL)
    assert says(ServiceStatus(True, True, None, "ready")) == ([{"STATUS": "ready"}], INTERVAL)
    usec = str(int((90 + GRACE) * 1e6))
    assert says(ServiceStatus(True, True, 90.0, "draining")) == (
        [{"STOPPING": "1", "STATUS": "draining"}, {"EXTEND_TIMEOUT_USEC": usec}],
        INTERVAL_CHANGING,
    )
    assert says(ServiceStatus(True, True, 0.0, "draining")) == (
        [{"EXTEND_TIMEOUT_USEC": str(int(GRACE * 1e6))}],
        INTERVAL_CHANGING,
    )


def test_an_end_before_the_start_is_over(manager: Manager) -> None:
    reporter = Reporter(Notifier(manager.environ), lambda: ServiceStatus(False, True, 0.0, ""))
    reporter.update()
    assert [list(message) for message in manager.received()] == [["STOPPING"], ["EXTEND_TIMEOUT_USEC"]]


@pytest.mark.parametrize(("usec", "wait"), [("60000000", INTERVAL), ("4000000", 4 / PINGS)])
def test_life_signs_come_in_time(manager: Manager, usec: str, wait: float) -> None:
    reporter = Reporter(
        Notifier(manager.environ | {"WATCHDOG_USEC": usec}), lambda: ServiceStatus(True, True, None, "")
    )
    assert reporter.update() == wait


async def test_it_goes_on_until_it_is_cancelled(manager: Manager) -> None:
    notifier = Notifier(manager.environ | {"WATCHDOG_USEC": "200000"})
    task = asyncio.create_task(Reporter(notifier, lambda: ServiceStatus(True, True, None, "")).run())
    signs = 0
    while signs < 3:
        await asyncio.sleep(0.01)
        signs += sum("WATCHDOG" in message for message in manager.received())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_without_a_manager_there_is_nothing_to_do() -> None:
    await asyncio.wait_for(Reporter(Notifier({}), lambda: ServiceStatus(True, True, None, "")).run(), 5)
