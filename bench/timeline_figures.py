"""The figures of a timeline: messages lost, refused and sent again for each event, and the spread of the closes."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.timeline_upstream import HEAD


@dataclass(frozen=True, slots=True)
class Happening:
    """One event: its start and end, and the time when all was quiet again (monotonic seconds)."""

    name: str
    title: str
    where: int  # index of the relay
    connections: int  # on that relay before the event
    began: float
    until: float
    quiet: float
    said: str


@dataclass(slots=True)
class Records:
    """The records of all processes, merged in the order of time; fields as in `timeline_load.Record`."""

    opened: list[tuple[float, int]] = field(default_factory=list)
    closed: list[tuple[float, int, str]] = field(default_factory=list)
    away: list[tuple[float, float]] = field(default_factory=list)
    sent: list[tuple[float, int, int, int]] = field(default_factory=list)
    acked: list[float] = field(default_factory=list)
    again: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    failed: list[tuple[float, str]] = field(default_factory=list)
    served: list[float] = field(default_factory=list)
    arrived: set[tuple[int, int, int]] = field(default_factory=set)  # device, number, connection


def read(sent: Iterable[Path], arrived: Path) -> Records:
    """Read the files that the devices and the hub have written."""
    records = Records()
    for path in sent:
        for name, values in json.loads(path.read_text()).items():
            getattr(records, name).extend(tuple(value) if isinstance(value, list) else value for value in values)
    for name in ("opened", "closed", "away", "sent", "acked", "again", "refused", "failed", "served"):
        getattr(records, name).sort()
    records.arrived.update(HEAD.iter_unpack(arrived.read_bytes()))
    return records


def figures(happening: Happening, records: Records) -> dict[str, Any]:
    """The figures of one event, until all was quiet again.

    Lost: written to a connection before its end was seen, and never arrived through that connection. Missing: never
    arrived at all, though the devices send again what was not acknowledged.
    """

    def during(when: float) -> bool:
        return happening.began <= when < happening.quiet

    sent = [one for one in records.sent if during(one[0])]
    known = {(device, number) for device, number, _ in records.arrived}
    closed = [(when, how) for when, where, how in records.closed if during(when) and where == happening.where]
    others = [when for when, where, _ in records.closed if during(when) and where != happening.where]
    away = [seconds for when, seconds in records.away if during(when)]
    seconds = Counter(int(when - happening.began) for when, _ in closed)
    return {
        "event": happening.name,
        "connections": happening.connections,
        "seconds": round(happening.until - happening.began, 1),
        "closed with FIN": sum(how == "end" for _, how in closed),
        "closed with RST": sum(how != "end" for _, how in closed),
        "closed elsewhere": len(others),
        "first close after": _seconds(closed[0][0] - happening.began) if closed else None,
        "last close after": _seconds(closed[-1][0] - happening.began) if closed else None,
        "most closes in a second": max(seconds.values(), default=0),
        "messages": len(sent),
        "lost": sum(one[1:] not in records.arrived for one in sent),
        "missing": sum((device, number) not in known for _, device, number, _ in sent),
        "sent again": sum(map(during, records.again)),
        "connects refused": sum(map(during, records.refused)),
        "connects failed": dict(Counter(why for when, why in records.failed if during(when))),
        "newcomers served": sum(map(during, records.served)),
        "away p50": _seconds(statistics.median(away)) if away else None,
        "away p99": _seconds(_quantile(away, 0.99)) if away else None,
        "note": happening.said,
    }


def levels(happening: Happening, records: Records, where: int, times: Sequence[float]) -> list[int]:
    """Connections open on a relay at these times, which are in order and relative to the event's start."""
    changes = sorted(
        [(when - happening.began, 1) for when, there in records.opened if there == where]
        + [(when - happening.began, -1) for when, there, _ in records.closed if there == where]
    )
    found, level, at = [], 0, 0
    for time in times:
        while at < len(changes) and changes[at][0] <= time:
            level += changes[at][1]
            at += 1
        found.append(level)
    return found


def rates(happening: Happening, moments: Iterable[float], first: int, last: int) -> list[int]:
    """How many of these times fall into each second from `first` until `last`, relative to the event's start."""
    seconds = Counter(int((when - happening.began) // 1) for when in moments)
    return [seconds[second] for second in range(first, last)]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The figures as a table for a terminal, one column per event."""
    names = [name for name in rows[0] if name not in ("event", "note")]
    lines = [f"{'':<26}" + "".join(f"{row['event']:>12}" for row in rows)]
    lines += [f"{name:<26}" + "".join(f"{_text(row[name]):>12}" for row in rows) for name in names]
    lines += [f"{row['event']}: {row['note']}" for row in rows if row["note"]]
    failed = [f"{row['event']}: {count} x {why}" for row in rows for why, count in row["connects failed"].items()]
    return "\n".join(lines + failed)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return str(sum(value.values()))
    return "-" if value is None else f"{value:,}"


def _seconds(value: float) -> float:
    return round(value, 2)


def _quantile(values: Sequence[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * part))]
