"""One of several processes that take and give back places as fast as they can; see test_limits_processes.py.

    python -m tests.core.hammer COLUMN TABLE WITNESS OPERATIONS

TABLE and WITNESS are descriptors. The witness is a file of two numbers that is only touched under a lock of the kernel:
how many leases are held for certain, and the most that were ever held at once. It knows nothing of the limits' table.
Prints how many acquires were admitted and how many were refused.
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import struct
import sys

from relay.core.counters import Layout
from relay.core.limit_table import LimitPlan
from relay.core.limits import Lease
from relay.ipc.shared_table import Table

ENOUGH = 100  # of either, for each process
PLAN = LimitPlan(workers=4, instance=5, capacity=4, listeners=(3, 0), per_source=2, source_buckets=64)
LAYOUT = Layout(2, 1, 1)
NUMBERS = struct.Struct("qq")
WORDS = 1 + len(PLAN.listeners) + 4  # the instance, each listener, each source
WITNESS_SIZE = WORDS * NUMBERS.size


class Witness:
    """Counts what is held, one word for each limit."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def add(self, words: list[int], change: int) -> None:
        fcntl.lockf(self._descriptor, fcntl.LOCK_EX)
        for word in words:
            held, most = self.read(word)
            held += change
            os.pwrite(self._descriptor, NUMBERS.pack(held, max(most, held)), word * NUMBERS.size)
        fcntl.lockf(self._descriptor, fcntl.LOCK_UN)

    def read(self, word: int) -> tuple[int, int]:
        held, most = NUMBERS.unpack(os.pread(self._descriptor, NUMBERS.size, word * NUMBERS.size))
        return held, most


def words_of(listener: int, source: int) -> list[int]:
    return [0, 1 + listener, len(PLAN.listeners) + source]


def main() -> None:
    column, table, witness_descriptor, operations = map(int, sys.argv[1:])
    limits = Table(table, PLAN, LAYOUT).limits(column)
    witness = Witness(witness_descriptor)
    choose = random.Random(column)
    held: list[tuple[Lease, list[int]]] = []
    admitted = refused = 0

    def take(listener: int, source: int) -> bool:
        nonlocal admitted, refused
        result = limits.acquire(listener, source)
        if not isinstance(result, Lease):
            refused += 1
            return False
        admitted += 1
        words = words_of(listener, source)
        held.append((result, words))
        witness.add(words, 1)
        return True

    def give_back() -> None:
        lease, words = held.pop(0)
        witness.add(words, -1)
        lease.release()

    # All of them begin with a place or two, more together than any of them could have alone.
    for _ in range(2):
        take(1, 1 + column)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    done = 0
    while done < operations or min(admitted, refused) <= ENOUGH:  # one that had no processor goes on for longer
        done += 1
        taken = take(choose.randrange(len(PLAN.listeners)), choose.randrange(1, 5))
        if held and (not taken or choose.random() < 0.3):
            give_back()
    while held:
        give_back()
    sys.stdout.write(json.dumps({"admitted": admitted, "refused": refused}))


if __name__ == "__main__":
    main()
