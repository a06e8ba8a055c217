"""Rates between real processes, over the real table and its locks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from relay.core.rates import ACCEPT
from relay.rate_table import RateTable, RecordLock
from tests.observe import wait_until
from tests.unit.rate_taker import PLAN

ROOT = Path(__file__).parents[2]
TAKERS = 4
SECONDS = 0.5

HOLDER = """
import sys
from relay.rate_table import RecordLock
assert RecordLock(int(sys.argv[1])).acquire(0)
print("held", flush=True)
sys.stdin.readline()
"""


def test_processes_together_never_take_more_than_the_rate() -> None:
    table = RateTable.create(PLAN)
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.unit.rate_taker", str(table.descriptor), str(SECONDS)],
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
    for name, rate in (("accept", PLAN.accept), ("source", PLAN.source)):
        taken = sum(result[name] for result in results)
        assert taken <= rate.burst + rate.per_second * lasted
        assert taken >= rate.burst, "what there was at first, at least"
    assert sum(result["refused"] for result in results) > 100


def test_a_lock_of_a_stopped_process_is_not_waited_for_and_that_of_a_dead_one_is_free() -> None:
    table = RateTable.create(PLAN)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(table.descriptor)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=[table.descriptor],
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        rates = table.rates(alone=False)
        assert not rates.accept(), "refused, as it cannot be known"
        assert rates.source(1), "another bucket has another lock"
        os.kill(holder.pid, signal.SIGKILL)
        wait_until(rates.accept, what="the lock of a dead process is free")
    finally:
        holder.kill()
        holder.wait()
        for stream in (holder.stdin, holder.stdout):
            assert stream is not None
            stream.close()


def test_a_lock_that_is_had_is_given_back() -> None:
    table = RateTable.create(PLAN)
    lock = RecordLock(table.descriptor)
    assert lock.acquire(ACCEPT)
    lock.release(ACCEPT)
    probe = "import sys; from relay.rate_table import RecordLock; print(RecordLock(int(sys.argv[1])).acquire(0))"
    done = subprocess.run(
        [sys.executable, "-c", probe, str(table.descriptor)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        pass_fds=[table.descriptor],
    )
    assert done.stdout == "True\n"
