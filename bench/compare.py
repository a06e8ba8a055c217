"""Compare relay's cost with HAProxy's, side by side: `make bench`, or `python -m bench.compare --help`.

Absolute times drift on a shared machine. So each round measures every proxy for a short slice of each scenario, one
after the other, and the report is the median over rounds of the ratio to HAProxy in the same round.
Proxies are pinned to one processor, load and upstreams to another. CPU is the time of all processes of a proxy
per unit of work: messages relayed, connections served, bytes passed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench import end_in_order, idle
from bench.peers import HELLO_SIZE, LOAD_CPU, Bench, Peer, describe, names

WARM_UP = 0.5  # seconds
NETWORKS = 10_000  # on an access list
ROUTES = 1_000


@dataclass(frozen=True, slots=True)
class Scenario:
    """One kind of load. CPU time is reported per `scale` units of work; `unit` is the label."""

    name: str
    text: str
    sink: bool
    arguments: tuple[str, ...]
    unit: str
    scale: float
    tail: tuple[str, ...] = ()


SCENARIOS = (
    Scenario("messages", "128 B echo, 100 connections", False, ("messages", "100", "128"), "µs per message", 1e6),
    Scenario("large", "1 KiB echo, 1,000 connections", False, ("messages", "1000", "1024"), "µs per message", 1e6),
    Scenario(
        "sparse",
        "128 B, 1,000 connections, 2,000/s",
        False,
        ("sparse", "1000", "128"),
        "µs per message",
        1e6,
        ("2000",),
    ),
    Scenario("connections", "connect, echo, RST", False, ("connections", "50", "128"), "µs per connection", 1e6),
    Scenario(
        "hellos",
        "connect, TLS hello and its echo, RST",
        False,
        ("connections", "50", str(HELLO_SIZE)),
        "µs per connection",
        1e6,
        ("{hello}",),
    ),
    Scenario("bulk", "4 streams one way", True, ("bulk", "4"), "s per GB", 1e9),
)


PEERS: dict[str, Callable[[Bench], Peer]] = {
    "relay": lambda bench: bench.relay(),
    "stream": lambda bench: bench.relay("stream", engine="stream"),
    "access": lambda bench: bench.relay("access", access=True),
    "guarded": lambda bench: bench.relay("guarded", networks=NETWORKS),
    "gated": lambda bench: bench.relay("gated", networks=NETWORKS, gated=True),
    "hello": lambda bench: bench.relay("hello", routes=["another.example"]),
    "routes": lambda bench: bench.relay("routes", routes=names(ROUTES)),
    "haproxy-routes": lambda bench: bench.haproxy_routes(ROUTES),
    "uvloop": lambda bench: bench.bare_uvloop(),
}
# Peers that HAProxy has the same features beside, by its name there.
BESIDE = {"routes": "haproxy-routes"}


def takes(peer: Peer, scenario: str) -> bool:
    """Whether a proxy can be measured in a scenario: one that requires a TLS name accepts hellos only."""
    return peer.name not in ("gated", "haproxy-routes") or scenario == "hellos"


class Died(Exception):
    """A proxy ended under its load."""

    def __init__(self, peer: Peer, scenario: Scenario) -> None:
        statuses = [process.poll() for process in peer.processes]
        super().__init__(f"{peer.name} failed under {scenario.name}; exit status of its processes: {statuses}")


def slice_of(bench: Bench, peer: Peer, scenario: Scenario, seconds: float) -> tuple[float, dict[str, float]]:
    """CPU seconds and the load's report for one slice."""
    port = peer.sink if scenario.sink else peer.echo
    mode, *rest = scenario.arguments
    tail = [part.format(hello=bench.hello) for part in scenario.tail]
    command = ["taskset", "-c", str(LOAD_CPU), str(bench.load), mode, str(port), *rest, str(seconds), *tail]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        if process.stdout.readline() != "begin\n":
            raise Died(peer, scenario)
        before = peer.cpu_seconds()
        process.stdin.write("x")
        process.stdin.flush()
        report = json.loads(process.stdout.readline() or "null")
        used = peer.cpu_seconds() - before
    if not report or not report["units"]:
        raise Died(peer, scenario)
    if report["errors"]:
        print(f"warning: {peer.name}, {scenario.name}: {report['errors']:.0f} errors", file=sys.stderr)
    return used, report


def main() -> int:
    """Measure and print; the figures also go to --json."""
    scenarios_named = [scenario.name for scenario in SCENARIOS]
    parser = argparse.ArgumentParser(
        prog="bench.compare", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=10, help="rounds (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a slice (default %(default)s)")
    parser.add_argument("--only", default=",".join([*scenarios_named, "idle"]), help="scenarios (default %(default)s)")
    parser.add_argument("--peers", default="relay,stream,uvloop", help="of relay, stream, access, guarded,\n"
                        "gated, hello, routes, haproxy-routes, uvloop (default %(default)s);\n"
                        "all but stream and uvloop run the ring engine: access with its\n"
                        f"access log on, guarded with {NETWORKS:,} networks on its access list and a\n"
                        "limit per source, gated with rates and a TLS name as well (scenario\n"
                        "hellos only), hello with a route that no hello takes, as the short form\n"
                        f"has one, routes with {ROUTES:,}, of which the last is taken, and\n"
                        "haproxy-routes with a map of as many names (hellos only)")  # fmt: skip
    parser.add_argument("--python", default="/usr/bin/python3", help="one with relay's packages (default %(default)s)")
    parser.add_argument("--base", type=int, default=21000, help="first loopback port (default %(default)s)")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    options = parser.parse_args()
    chosen = options.only.split(",")
    if unknown := set(chosen) - {*scenarios_named, "idle"}:
        known = ", ".join([*scenarios_named, "idle"])
        parser.error(f"--only: {', '.join(sorted(unknown))}: not a scenario; may be {known}")
    if unknown := set(options.peers.split(",")) - set(PEERS):
        parser.error(f"--peers: {', '.join(sorted(unknown))}: not a peer; may be {', '.join(PEERS)}")
    with tempfile.TemporaryDirectory(prefix="relay-bench-") as folder:
        bench = Bench(Path(folder), options.base, options.python)
        try:
            scenarios = [scenario for scenario in SCENARIOS if scenario.name in chosen]
            return measure(bench, options, scenarios, with_idle="idle" in chosen)
        except (Died, SystemExit) as error:
            print((Path(folder) / "output.log").read_text(errors="replace")[-3000:], file=sys.stderr)
            raise SystemExit(f"bench: {error}") from None
        finally:
            bench.close()


def measure_idle(bench: Bench, peers: list[Peer]) -> dict[str, idle.Idle]:
    """Each proxy's figures, measured after a little work, since memory touched once belongs to no connection."""
    print("idle connections, half a minute for each proxy", file=sys.stderr)
    direct = idle.direct_kernel(bench)
    figures = {}
    for peer in peers:
        if not takes(peer, "idle"):
            continue
        slice_of(bench, peer, SCENARIOS[0], WARM_UP)
        figures[peer.name] = idle.measure(bench, peer, direct)
    return figures


def print_idle(figures: dict[str, idle.Idle]) -> None:
    """Print the table of idle connections."""
    print(f"\nidle: {idle.CONNECTIONS:,} connections for memory (KiB each), {idle.SILENT:,} silent ones for CPU")
    base = figures["haproxy"]
    for name, figure in figures.items():
        kernel = "the kernel's only as root"
        if figure.kernel is not None and base.kernel is not None:
            kernel = f"the kernel's {figure.kernel:6.2f}  ÷ HAProxy {figure.kernel / base.kernel:5.2f}"
        print(
            f"  {name:8s} {figure.cpu_percent:6.2f} % of a core  "
            f"the process's {figure.process:6.2f}  ÷ HAProxy {figure.process / base.process:5.2f}  {kernel}"
        )


def measure(bench: Bench, options: argparse.Namespace, scenarios: list[Scenario], *, with_idle: bool) -> int:
    """Run all rounds, then print the table."""
    about = describe(options.python)
    for key, value in about.items():
        print(f"{key:12s} {value}")
    bench.start_upstreams()
    peers = [bench.haproxy(), *(PEERS[name](bench) for name in options.peers.split(","))]
    idles = measure_idle(bench, peers) if with_idle else {}
    costs: dict[tuple[str, str], dict[int, float]] = {}
    latency: dict[tuple[str, str], list[float]] = {}
    for number in range(options.rounds):
        print(f"\rround {number + 1} of {options.rounds}", end="", flush=True, file=sys.stderr)
        for scenario in scenarios:
            for peer in list(peers):
                if not takes(peer, scenario.name):
                    continue
                try:
                    used, report = slice_of(bench, peer, scenario, options.seconds)
                except Died as error:
                    if peer.name != "uvloop":
                        raise
                    # A peer that crashes is a finding as well; its rounds until then count.
                    print(f"\n{error}; left out from here on")
                    peers.remove(peer)
                    continue
                costs.setdefault((scenario.name, peer.name), {})[number] = used / report["units"] * scenario.scale
                latency.setdefault((scenario.name, peer.name), []).append(report["p99_us"])
    print(file=sys.stderr)
    figures: dict[str, object] = {
        "about": about,
        "rounds": options.rounds,
        "seconds": options.seconds,
        "idle": {name: dataclasses.asdict(figure) for name, figure in idles.items()},
    }
    for scenario in scenarios:
        print(f"\n{scenario.name}: {scenario.text}")
        base = costs[scenario.name, peers[0].name]
        for name in (name for which, name in costs if which == scenario.name):
            own = costs[scenario.name, name]
            ratios = sorted(cost / base[number] for number, cost in own.items())
            figures[f"{scenario.name}/{name}"] = {"cost": list(own.values()), "ratio": statistics.median(ratios)}
            print(
                f"  {name:8s} {statistics.median(own.values()):8.2f} {scenario.unit:18s} "
                f"÷ HAProxy {statistics.median(ratios):5.2f}  ({ratios[0]:.2f} to {ratios[-1]:.2f})  "
                f"p99 {statistics.median(latency[scenario.name, name]):8.0f} µs"
            )
            other = costs.get((scenario.name, BESIDE.get(name, "")))
            if other is not None:
                ratios = sorted(cost / other[number] for number, cost in own.items())
                figures[f"{scenario.name}/{name}/beside"] = statistics.median(ratios)
                median = statistics.median(ratios)
                print(f"  {'':8s} ÷ {BESIDE[name]} {median:5.2f}  ({ratios[0]:.2f} to {ratios[-1]:.2f})")
    if idles:
        print_idle(idles)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))
    return 0


if __name__ == "__main__":
    end_in_order()
    raise SystemExit(main())
