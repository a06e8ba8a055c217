"""Another process that maps the table; see test_shared_table.py. Answers each line of its input with what it sees."""

from __future__ import annotations

import sys

from relay.core.limits import Lease
from relay.ipc.shared_table import Table
from tests.ipc.tables import LAYOUT, PLAN


def main() -> None:
    table = Table(int(sys.argv[1]), PLAN, LAYOUT)
    limits = table.limits(1)
    for line in sys.stdin:
        word, *numbers = line.split()
        if word == "acquire":
            result = limits.acquire(0, int(numbers[0]))
            answer = "admitted" if isinstance(result, Lease) else result.value
        elif word == "read":
            answer = str(table.blocks[int(numbers[0])][int(numbers[1])])
        else:
            table.blocks[int(numbers[0])][int(numbers[1])] = int(numbers[2])
            answer = "written"
        sys.stdout.write(answer + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
