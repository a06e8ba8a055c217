"""The figures of a run, and the problems that they show."""

from __future__ import annotations

from typing import Any

from bench.same.ways import Way
from bench.watch import leaks


def verdict(ways: list[Way]) -> list[str]:
    """Print the figures; return the problems, a line each."""
    problems = []
    _table(ways)
    for way in ways:
        if way.tally.different.total():
            problems.append(f"{way.name}: {way.tally.different.total()} differences")
        if way.relay:
            print(f"\nrelay, {way.name}")
            warm = way.warm or way.watch.processes()  # a run that ends before the warm-up shows no growth
            found = [*leaks(way.watch, way.fresh, warm), *_miscounted(way, way.watch.status()["connections"])]
            problems += [f"{way.name}: {problem}" for problem in found]
    return problems


def _table(ways: list[Way]) -> None:
    """Print the number of scripts by kind, with the differences beside them."""
    tallies = [way.tally for way in ways]
    print(f"{'script, who acts first':32s}" + "".join(f"{way.name:>18s}" for way in ways))
    for kind in sorted(tallies[0].played):
        print(f"{kind:32s}" + "".join(f"{tally.played[kind]:12,}{tally.different[kind]:6,}" for tally in tallies))
    print(f"{'all':32s}" + "".join(f"{tally.played.total():12,}{tally.different.total():6,}" for tally in tallies))
    print(f"{'bytes received at both ends':32s}" + "".join(f"{tally.bytes:18,}" for tally in tallies))
    for way in ways:
        seconds, script = way.tally.slowest
        print(f"{way.name}: a reset was told after {seconds:.3f} s at most, {script}")
    for way in ways:
        for reason, count in sorted(way.tally.allowed.items()):
            print(f"allowed {count:,} times, {way.name}: {reason}")


def _miscounted(way: Way, connections: dict[str, Any]) -> list[str]:
    """Where the relay's own counts of outcomes do not fit the scripts."""
    outcomes: dict[str, int] = connections["outcomes"]
    by = way.tally.resets
    client = outcomes["client_reset"] + outcomes["client_abort"]
    upstream = outcomes["upstream_reset"] + outcomes["dial_failed"] + outcomes["dial_refused"]
    # If both ends reset, the relay may see either first.
    expected = {
        "accepted": (connections["accepted"], way.tally.played.total(), 0),
        "ended in good order": (outcomes["ok"], by[""], 0),
        "reset by the client": (client, by["client"], by["both"]),
        "reset by the upstream": (upstream, by["upstream"], by["both"]),
    }
    return [
        f"{what}: {count} connections, {least} scripts" + (f" to {least + more}" if more else "")
        for what, (count, least, more) in expected.items()
        if not least <= count <= least + more
    ]
