"""Rates between real processes, over the real table and its locks."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from relay.core.rates import ACCEPT, Rate
from relay.ipc import shared_rates
from relay.ipc.shared_rates import PATIENCE, RateTable, RecordLock
from tests.ipc.rate_taker import CUSTOMER, OF_CUSTOMER, PLAN
from tests.support.observe import wait_until
from tests.support.programs import ROOT

TAKERS = 4
SECONDS = 0.5

HOLDER = """
import sys
from relay.ipc.shared_rates import RecordLock
assert RecordLock(int(sys.argv[1])).acquire(0)
print("held", flush=True)
sys.stdin.readline()
"""


@contextmanager
def holding(script: str, table: RateTable) -> Iterator[subprocess.Popen[bytes]]:
    """A process that runs the script, and holds the lock."""
    with subprocess.Popen(
        [sys.executable, "-c", script, str(table.descriptor)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=[table.descriptor],
    ) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"held\n"
            yield holder
        finally:
            holder.kill()


def test_processes_together_never_take_more_than_the_rate() -> None:
    table = RateTable.create(PLAN)
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.ipc.rate_taker", str(table.descriptor), str(SECONDS)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=[table.descriptor],
        )
        for _ in range(TAKERS)
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        begun = time.monotonic()
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        results = [json.loads(process.communicate(timeout=50)[0]) for process in processes]
        lasted = time.monotonic() - begun
    finally:
        for process in processes:
            process.kill()
            process.wait()
    for name, rate in (("accept", PLAN.accept), ("source", PLAN.source), ("customer", OF_CUSTOMER)):
        taken = sum(result[name] for result in results)
        assert taken <= rate.burst + rate.per_second * lasted
        assert taken >= rate.burst, "what there was at first, at least"
    assert sum(result["refused"] for result in results) > 100
    rates = table.rates(alone=True)
    slow = Rate(0.001, 1.0)
    assert rates.customer(CUSTOMER - 1, slow.interval, slow.tolerance), "other customers have theirs"
    table.forget_customer(CUSTOMER)
    assert rates.customer(CUSTOMER, slow.interval, slow.tolerance), "a slot's next customer begins with a full bucket"
    assert not rates.customer(CUSTOMER, slow.interval, slow.tolerance)


def test_a_lock_of_a_stopped_process_is_not_waited_for_and_that_of_a_dead_one_is_free() -> None:
    table = RateTable.create(PLAN)
    with holding(HOLDER, table) as holder:
        rates = table.rates(alone=False)
        assert not rates.accept(), "refused, as it cannot be known"
        assert rates.source(1), "another bucket has another lock"
        os.kill(holder.pid, signal.SIGKILL)
        wait_until(rates.accept, what="the lock of a dead process is free")


SLOW = """
import sys, time
from relay.ipc.shared_rates import RecordLock
lock = RecordLock(int(sys.argv[1]))
assert lock.acquire(0)
print("held", flush=True)
sys.stdin.readline()
lock.release(0)
end = time.monotonic() + 0.5
while time.monotonic() < end:
    if lock.acquire(0):
        until = time.monotonic() + 0.0005
        while time.monotonic() < until:
            pass
        lock.release(0)
    time.sleep(0.0001)
"""


def test_a_lock_that_was_held_for_long_once_is_waited_for_again() -> None:
    """Its holder had to wait for a processor, say: that must not make refusals of all that comes in the next second."""
    table = RateTable.create(PLAN)
    with holding(SLOW, table) as holder:
        assert holder.stdin is not None
        lock = RecordLock(table.descriptor)
        for _ in range(20):
            assert not lock.acquire(ACCEPT)
        holder.stdin.write(b"\n")
        holder.stdin.flush()
        wait_until(lambda: lock.acquire(ACCEPT), what="it is free")
        lock.release(ACCEPT)
        had, refused = 0, 0
        while holder.poll() is None:
            if lock.acquire(ACCEPT):
                lock.release(ACCEPT)
                had += 1
            else:
                refused += 1
    assert had > 100
    assert refused <= 10


def test_a_lock_that_stays_held_costs_less_and_less_time(monkeypatch: pytest.MonkeyPatch) -> None:
    times = itertools.count()  # a millisecond passes with each look at the clock
    monkeypatch.setattr(shared_rates, "time", SimpleNamespace(monotonic=lambda: next(times) / 1000))
    table = RateTable.create(PLAN)
    with holding(HOLDER, table):
        lock = RecordLock(table.descriptor)
        attempts = 1000
        for _ in range(attempts):
            assert not lock.acquire(ACCEPT)
    # The least that an attempt takes is two looks.
    assert next(times) / 1000 <= 2 * PATIENCE + 2 * attempts / 1000


def test_a_lock_that_is_had_is_given_back() -> None:
    table = RateTable.create(PLAN)
    lock = RecordLock(table.descriptor)
    assert lock.acquire(ACCEPT)
    lock.release(ACCEPT)
    probe = "import sys; from relay.ipc.shared_rates import RecordLock; print(RecordLock(int(sys.argv[1])).acquire(0))"
    done = subprocess.run(
        [sys.executable, "-c", probe, str(table.descriptor)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        pass_fds=[table.descriptor],
    )
    assert done.stdout == "True\n"
