"""The soak: random conversations through a real relay for minutes on end, every byte checked, then a check for leaks.

    python -m bench.soak --minutes 10        (or: make soak)

A relay with two workers stands between an upstream and a client, each a separate process, all on loopback. Some hundred
connections at a time play scripts (`bench.script`): random sizes, chunks and pauses, either end finishing
first, resets from either side, slow readers, connections that say nothing. At the end every accepted connection must
have one outcome, no descriptor may be left, and memory must be where it was after the first tenth of the time. Seeds
are counted up from --seed, which is printed, so a failure can be played again.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from bench import end_in_order
from bench.peers import wait_for_port
from bench.script import HEADER, Difference, End, Script
from bench.watch import Process, Watch, errors, leaks, tracebacks

CONFIG = """\
workers = 2
[admin]
bind = "127.0.0.1:{admin}"
[health]
bind = ""
[drain]
announce = 0.0
window = 5.0
[[listeners]]
name = "soak"
bind = ["127.0.0.1:{port}"]
upstream = ["127.0.0.1:{upstream}"]
"""
START = 120.0  # seconds that a start may take; an emulated processor is slow


async def play(sock: socket.socket, script: Script, results: Counter[str], *, client: bool) -> None:
    """Play one end of a connection; count the result, and print a difference."""
    side = "client" if client else "upstream"
    try:
        with sock:
            await End(sock, script, client=client).run()
    except (Difference, OSError, TimeoutError) as error:
        results["different"] += 1
        print(f"\n{side}, seed {script.seed}, {script}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    else:
        results[script.kind] += 1


async def upstream(port: int) -> None:
    """Serve until standard input ends, then print the counts."""
    loop = asyncio.get_running_loop()
    results: Counter[str] = Counter()
    tasks: set[asyncio.Task[None]] = set()

    async def serve(sock: socket.socket) -> None:
        head = b""
        try:
            while len(head) < HEADER.size and (data := await loop.sock_recv(sock, HEADER.size - len(head))):
                head += data
        except ConnectionError:
            pass  # the reset of a client may discard its header
        if len(head) < HEADER.size:
            results["no_header"] += 1
            sock.close()
            return
        await play(sock, Script.of(HEADER.unpack(head)[0]), results, client=False)

    async def accept(listener: socket.socket) -> None:
        while True:
            sock, _ = await loop.sock_accept(listener)
            tasks.add(task := loop.create_task(serve(sock)))
            task.add_done_callback(tasks.discard)

    with socket.create_server(("127.0.0.1", port), backlog=4096) as listener:
        listener.setblocking(False)
        accepting = loop.create_task(accept(listener))
        await loop.run_in_executor(None, sys.stdin.read)
        accepting.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    print(json.dumps(results))


async def client(port: int, seeds: Iterator[int], until: float, results: Counter[str]) -> None:
    """Play scripts one after the other until the time is over."""
    loop = asyncio.get_running_loop()
    while time.monotonic() < until and not results["different"]:
        script = Script.of(next(seeds))
        sock = socket.socket()
        sock.setblocking(False)
        if script.kind == "slow_client":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        try:
            await loop.sock_connect(sock, ("127.0.0.1", port))
            if script.kind == "no_header":
                results[script.kind] += 1
                sock.close()
                continue
            await loop.sock_sendall(sock, HEADER.pack(script.seed))
        except OSError as error:
            results["different"] += 1
            print(f"\nclient, seed {script.seed}: {error}", file=sys.stderr)
            sock.close()
            continue
        await play(sock, script, results, client=True)


async def soak(options: argparse.Namespace, watch: Watch) -> tuple[Counter[str], list[Process]]:
    """Run the clients; return their counts and the workers' state after the warm-up."""
    results: Counter[str] = Counter()
    seeds = iter(range(options.seed, sys.maxsize))
    start = time.monotonic()
    until = start + options.minutes * 60
    clients = [asyncio.create_task(client(options.base + 1, seeds, until, results)) for _ in range(options.connections)]
    warm: list[Process] = []
    while not all(task.done() for task in clients):
        await asyncio.wait(clients, timeout=2)
        passed = time.monotonic() - start
        if not warm and passed > options.minutes * 6:
            warm = await asyncio.to_thread(watch.processes)
        print(f"\r{passed:5.0f} s of {options.minutes * 60:.0f}: {results.total():,} connections, "
              f"{results['different']} differences", end="", flush=True)  # fmt: skip
    await asyncio.gather(*clients)
    print()
    return results, warm


def verdict(
    ours: Counter[str], theirs: Counter[str], watch: Watch, fresh: list[Process], warm: list[Process]
) -> list[str]:
    """Print the figures; return the problems, a line each."""
    problems = []
    print(f"\n{'script':16s}{'client':>10s}{'upstream':>10s}")
    for kind in sorted({*ours, *theirs}):
        print(f"{kind:16s}{ours[kind]:10,}{theirs[kind]:10,}")
        # A client's reset may overtake its header; to the upstream, such a connection looks like a silent one.
        if kind not in ("no_header", "client_reset", "different") and ours[kind] != theirs[kind]:
            problems.append(f"{kind}: the client played {ours[kind]}, the upstream {theirs[kind]}")
    print()
    problems += leaks(watch, fresh, warm)
    if ours["different"] or theirs["different"]:
        problems.append(f"{ours['different'] + theirs['different']} connections differed from their script")
    return problems


def main() -> int:
    """Run the soak; return 0 if nothing differed and nothing leaked."""
    if sys.argv[1:2] == ["--upstream"]:
        asyncio.run(upstream(int(sys.argv[2])))
        return 0
    parser = argparse.ArgumentParser(
        prog="bench.soak", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="how long (default %(default)s)")
    parser.add_argument("--connections", type=int, default=200, help="how many at the same time (default %(default)s)")
    parser.add_argument(
        "--seed", type=int, default=int(time.time()) * 1000, help="first seed (default: from the clock)"
    )
    parser.add_argument("--base", type=int, default=22000, help="first of three loopback ports (default %(default)s)")
    options = parser.parse_args()
    print(f"soak: {options.minutes:g} minutes, {options.connections} connections at a time, --seed {options.seed}")
    admin, port, upstream_port = options.base, options.base + 1, options.base + 2
    with tempfile.TemporaryDirectory(prefix="relay-soak-") as folder, (Path(folder) / "relay.log").open("wb") as log:
        config = Path(folder) / "relay.toml"
        config.write_text(CONFIG.format(admin=admin, port=port, upstream=upstream_port))
        other = subprocess.Popen(
            [sys.executable, "-m", "bench.soak", "--upstream", str(upstream_port)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        relay = subprocess.Popen(
            [sys.executable, "-m", "relay", "run", "--config", str(config)], stdout=log, stderr=log
        )
        try:
            for each in (upstream_port, port, admin):
                wait_for_port(each, START)
            watch = Watch(admin)
            watch.ready(START)
            fresh = watch.processes()
            ours, warm = asyncio.run(soak(options, watch))
            theirs: Counter[str] = Counter(json.loads(other.communicate(timeout=90)[0]))
            problems = verdict(ours, theirs, watch, fresh, warm)
        finally:
            relay.send_signal(signal.SIGTERM)
            relay.wait(30)
            other.kill()
            other.wait()
        problems += tracebacks(Path(folder) / "relay.log") + errors(Path(folder) / "relay.log")
    for problem in problems:
        print(f"FAIL {problem}")
    if not problems:
        print("PASS no byte differed, nothing leaked")
    return 1 if problems else 0


if __name__ == "__main__":
    end_in_order()
    raise SystemExit(main())
