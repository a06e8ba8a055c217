"""One of several processes that take tokens as fast as they can; see test_shared_rates.py.

    python -m tests.ipc.rate_taker TABLE SECONDS

Prints how many it took of the instance's and of one source's bucket, and how many were refused. A line on standard
input begins it.
"""

from __future__ import annotations

import json
import sys
import time

from relay.core.rates import Rate, RatePlan
from relay.ipc.shared_rates import RateTable

PLAN = RatePlan(accept=Rate(20_000.0, 500.0), source=Rate(1_000.0, 100.0))
SOURCE = 12345


def main() -> None:
    rates = RateTable(int(sys.argv[1]), PLAN).rates(alone=False)
    taken = {"accept": 0, "source": 0, "refused": 0}
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    end = time.monotonic() + float(sys.argv[2])
    while time.monotonic() < end:
        for name, took in (("accept", rates.accept()), ("source", rates.source(SOURCE))):
            taken[name if took else "refused"] += 1
    sys.stdout.write(json.dumps(taken) + "\n")


if __name__ == "__main__":
    main()
