"""The limits between real processes, over the real table, with whatever reordering this machine's processors do."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from relay.core.limit_table import total_held
from relay.core.limits import Lease, Refusal
from relay.ipc.shared_table import Table
from tests.core.hammer import ENOUGH, LAYOUT, PLAN, WITNESS_SIZE, WORDS, Witness
from tests.support.programs import ROOT

OPERATIONS = 4000


def test_processes_never_hold_more_than_the_limits() -> None:
    table = Table.create(PLAN, LAYOUT)
    descriptor = os.memfd_create("witness")
    os.ftruncate(descriptor, WITNESS_SIZE)
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.core.hammer", *map(str, (column, table.descriptor, descriptor, OPERATIONS))],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=[table.descriptor, descriptor],
        )
        for column in range(PLAN.workers)
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:  # all are there: begin
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        results = [json.loads(process.communicate(timeout=50)[0]) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                assert stream is not None
                stream.close()
    witness = Witness(descriptor)
    held, most = zip(*(witness.read(word) for word in range(WORDS)), strict=True)
    os.close(descriptor)
    assert held == (0,) * WORDS
    assert most[0] == PLAN.instance, "reached, by all of them together, and not exceeded"
    assert most[1] <= PLAN.listeners[0]
    assert all(number <= PLAN.per_source for number in most[3:])
    assert all(result["admitted"] > ENOUGH and result["refused"] > ENOUGH for result in results)
    assert total_held(PLAN, table.counts) == 0
    # Nothing of it is left: there is room for exactly as many as at first.
    limits = [table.limits(column) for column in range(PLAN.workers)]
    outcomes = [limits[column].acquire(1, 1 + column) for column in range(PLAN.workers) for _ in range(2)]
    assert sum(isinstance(outcome, Lease) for outcome in outcomes) == PLAN.instance
    assert outcomes[PLAN.instance :] == [Refusal.INSTANCE] * (len(outcomes) - PLAN.instance)
    os.close(table.descriptor)
