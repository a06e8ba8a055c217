"""One of several processes that take tokens as fast as they can; see test_shared_rates.py.

    python -m tests.ipc.rate_taker TABLE SECONDS

Prints how many it took of the instance's, of one source's and of one customer's bucket, and how many were refused. A
line on standard input begins it.
"""

from __future__ import annotations

import json
import sys
import time

from relay.core.rates import Rate, RatePlan
from relay.ipc.shared_rates import RateTable

PLAN = RatePlan(accept=Rate(20_000.0, 500.0), source=Rate(1_000.0, 100.0), customers=8)
SOURCE = 12345
CUSTOMER, OF_CUSTOMER = 7, Rate(2_000.0, 200.0)


def main() -> None:
    rates = RateTable(int(sys.argv[1]), PLAN).rates(alone=False)
    taken = {"accept": 0, "source": 0, "customer": 0, "refused": 0}
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    end = time.monotonic() + float(sys.argv[2])
    while time.monotonic() < end:
        of_customer = rates.customer(CUSTOMER, OF_CUSTOMER.interval, OF_CUSTOMER.tolerance)
        for name, took in (
            ("accept", rates.accept()),
            ("source", rates.source(SOURCE)),
            ("customer", of_customer),
        ):
            taken[name if took else "refused"] += 1
    sys.stdout.write(json.dumps(taken) + "\n")


if __name__ == "__main__":
    main()
