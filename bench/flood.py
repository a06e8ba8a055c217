"""A flood of sources: its cost in memory, in log lines, and in latency for clients that are served meanwhile.

    python -m bench.flood [--sources 100000] [--python /usr/bin/python3]

From each of --sources loopback addresses a connection is made and reset, as fast as this process can. Three floods: let
in (each takes a slot in the table of sources), let in from other addresses, denied by the access list. Meanwhile one
client exchanges messages on an established connection, and new clients connect; both are timed. Loopback only.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench import end_in_order

ROOT = Path(__file__).parent.parent
RESET = struct.pack("ii", 1, 0)
BATCH = 50  # connections between two timings of the served clients
CONFIG = """\
workers = 2
[admin]
bind = "127.0.0.1:{admin}"
[health]
bind = ""
[access]
deny = ["127.128.0.0/9"]
[limits]
max_connections_per_source = 10
connect_rate_per_source = 5.0
connect_burst_per_source = 1000
[health_check]
interval = 0
[[listeners]]
name = "echo"
bind = ["127.0.0.1:{echo}"]
upstream = ["127.0.0.1:{upstream}"]
"""
ECHO = """
import asyncio, sys
async def serve(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
    except ConnectionError:
        pass
    writer.close()
async def main():
    async with await asyncio.start_server(serve, "127.0.0.1", int(sys.argv[1]), backlog=4096) as server:
        await server.serve_forever()
try:
    asyncio.run(main())
except KeyboardInterrupt:
    pass
"""


def free_ports(count: int) -> list[int]:
    """Ports on which nothing listens now."""
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [sock.getsockname()[1] for sock in socks]


def memory(pids: list[int]) -> int:
    """Memory of these processes in KiB (proportional set size)."""
    lines = [line for pid in pids for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def addresses(first: int, count: int) -> Iterator[str]:
    """`count` loopback addresses from 127.`first`.0.0 on."""
    for number in range(count):
        yield f"127.{first + (number >> 16)}.{number >> 8 & 255}.{number & 255}"


def round_trip(sock: socket.socket) -> float:
    """Send a byte, receive it back; return the seconds."""
    started = time.perf_counter()
    sock.sendall(b"x")
    if sock.recv(1) != b"x":
        raise SystemExit("flood: the established connection was cut off")
    return time.perf_counter() - started


def flood(address: tuple[str, int], sources: Iterator[str]) -> Iterator[int]:
    """Connect and reset from each source; yield the size of each batch after it."""
    while batch := list(itertools.islice(sources, BATCH)):
        socks = []
        for source in batch:
            sock = socket.socket()
            sock.bind((source, 0))
            sock.setblocking(False)
            sock.connect_ex(address)
            socks.append(sock)
        for sock in socks:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            sock.close()
        yield len(batch)


def run(label: str, address: tuple[str, int], sources: Iterator[str], pids: list[int], talker: socket.socket) -> None:
    """Run one flood and print its figures."""
    before, begun, count = memory(pids), time.monotonic(), 0
    talking, coming = [], []
    for more in flood(address, sources):
        count += more
        if count % (10 * BATCH) == 0:
            talking.append(round_trip(talker))
            started = time.perf_counter()
            with socket.create_connection(address, 10) as client:
                round_trip(client)
            coming.append(time.perf_counter() - started)
    seconds = time.monotonic() - begun
    print(
        f"{label}: {count:,} sources in {seconds:.1f} s; memory of the relay {before:,} -> {memory(pids):,} KiB; "
        f"a message p50 {_ms(talking, 50)} p99 {_ms(talking, 99)}; "
        f"a new client p50 {_ms(coming, 50)} p99 {_ms(coming, 99)}"
    )


def _ms(values: list[float], percent: int) -> str:
    return f"{statistics.quantiles(values, n=100)[percent - 1] * 1000:.1f} ms"


def status(admin: int) -> dict[str, Any]:
    """The relay's /status."""
    with urllib.request.urlopen(f"http://127.0.0.1:{admin}/status", timeout=10) as answer:
        found: dict[str, Any] = json.load(answer)
        return found


def workers(admin: int, log: Path) -> list[int]:
    """The process ids of the relay's workers, once they are ready."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            pids = [worker["pid"] for worker in status(admin)["workers"] if worker["ready"]]
            if len(pids) == 2:
                return pids
        time.sleep(0.05)
    raise SystemExit(f"flood: no relay: {log.read_text()}")


def main() -> int:
    """Start everything, run the floods, end everything."""
    parser = argparse.ArgumentParser(
        prog="bench.flood", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--sources", type=int, default=100_000, help="sources in each flood (default %(default)s)")
    parser.add_argument("--python", default=sys.executable, help="one with relay's packages (default: this one)")
    options = parser.parse_args()
    admin, echo, upstream = free_ports(3)
    with tempfile.TemporaryDirectory(prefix="relay-flood-") as folder, contextlib.ExitStack() as stack:
        config, log = Path(folder) / "relay.toml", Path(folder) / "relay.log"
        config.write_text(CONFIG.format(admin=admin, echo=echo, upstream=upstream))

        def start(*command: str) -> subprocess.Popen[bytes]:
            with log.open("ab") as output:
                process = subprocess.Popen(
                    [options.python, *command], stdout=output, env={**os.environ, "PYTHONPATH": str(ROOT)}
                )
            stack.callback(process.wait)
            stack.callback(process.send_signal, signal.SIGINT)
            return process

        start("-c", ECHO, str(upstream))
        start("-m", "relay", "run", "--config", str(config))
        pids = workers(admin, log)
        address = ("127.0.0.1", echo)
        talker = stack.enter_context(socket.create_connection(address, 10))
        round_trip(talker)
        run("let in", address, addresses(1, options.sources), pids, talker)
        run("let in, others", address, addresses(40, options.sources), pids, talker)
        run("denied", address, addresses(128, options.sources), pids, talker)
        outcomes = {name: n for name, n in status(admin)["connections"]["outcomes"].items() if n}
        print(f"outcomes: {outcomes}; lines of the log: {len(log.read_text().splitlines()):,}")
    return 0


if __name__ == "__main__":
    end_in_order()
    raise SystemExit(main())
