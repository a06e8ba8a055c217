"""Transparency: scripts of both ends' actions, played directly and through every proxy, and the results compared.

    python -m bench.same --minutes 10        (or: make same)

Each seed is a script (`kinds`): random sizes, chunks and pauses, half-closes in both orders, closes, resets in every
phase from either side. It is played at the same time between client and upstream directly, through relay with the ring
engine, through relay with the stream engine, and through HAProxy if there is one; what each end saw must be the same
(`rules`). At the end no connection may be left in the relays. Seeds are counted up from --seed, which is printed;
`--seed N --count 1 --verbose` plays a single script and prints what happened at each end.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import shutil
import socket
import tempfile
import time
from pathlib import Path

from bench import end_in_order
from bench.same.report import verdict
from bench.same.run import Run
from bench.same.ways import DIRECT, HAPROXY, RING, STREAM, Way
from bench.watch import tracebacks


def main() -> int:
    """Run the comparison; return 0 if nothing differed and nothing leaked."""
    parser = argparse.ArgumentParser(
        prog="bench.same", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="how long (default %(default)s)")
    parser.add_argument("--count", type=int, default=0, help="number of scripts, in place of --minutes")
    parser.add_argument("--lanes", type=int, default=48, help="scripts at the same time (default %(default)s),\n"
                        "each played all ways at once")  # fmt: skip
    parser.add_argument(
        "--seed", type=int, default=int(time.time()) * 1000, help="first seed (default: from the clock)"
    )
    parser.add_argument("--base", type=int, default=28000, help="first of the loopback ports, 8 and 7 for each lane\n"
                        "(default %(default)s)")  # fmt: skip
    parser.add_argument("--verbose", action="store_true", help="print what happens at each end")
    options = parser.parse_args()
    names = [DIRECT, RING, STREAM, *([HAPROXY] if shutil.which("haproxy") else [])]
    limit = f"{options.count} scripts" if options.count else f"{options.minutes:g} minutes"
    print(f"same: {limit}, {options.lanes} at a time, --seed {options.seed}; {', '.join(names)}")
    if HAPROXY not in names:
        print("same: no haproxy here (apt-get install haproxy): that way is left out")
    ports = itertools.count(options.base + 8)
    ways = []
    for index, name in enumerate(names):
        upstreams = list(itertools.islice(ports, options.lanes))
        own = upstreams if name == DIRECT else list(itertools.islice(ports, options.lanes))
        ways.append(Way(name, own, upstreams, options.base + index))
    with tempfile.TemporaryDirectory(prefix="relay-same-") as text:
        folder = Path(text)
        try:
            for way in ways:
                way.start(folder)
            for way in ways:
                way.listeners = [socket.create_server(("127.0.0.1", port), backlog=64) for port in way.upstreams]
                for listener in way.listeners:
                    listener.setblocking(False)
            asyncio.run(Run(options, ways).run())
            problems = verdict(ways)
        finally:
            for way in ways:
                way.stop()
        for way in ways:
            if way.relay:
                problems += [f"{way.name}: {problem}" for problem in tracebacks(way.log(folder))]
    for problem in problems:
        print(f"FAIL {problem}")
    if not problems:
        print("PASS every end saw the same, nothing leaked")
    return 1 if problems else 0


if __name__ == "__main__":
    end_in_order()
    raise SystemExit(main())
