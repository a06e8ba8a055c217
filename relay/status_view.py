"""`relay status`: one look at a running relay through its admin port, as tables for people or as JSON."""

from __future__ import annotations

import json
import sys
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from relay.admin_client import Unreachable, fetch


def run(admin: str, *, as_json: bool) -> int:
    """Print it; 1 if there is no relay."""
    try:
        status = fetch(admin)
    except Unreachable as error:
        print(f"relay: {error}", file=sys.stderr)
        return 1
    if as_json:
        print(json.dumps(status, indent=2))
        return 0
    console = Console(highlight=False)
    for part in render(status):
        console.print(part)
    return 0


def render(status: dict[str, Any]) -> list[str | Table]:
    """The status as a headline and tables."""
    state = status["state"]
    colour = {"ready": "green", "draining": "yellow", "starting": "yellow"}.get(state, "red")
    reason = f" ({escape(status['reason'])})" if status["reason"] not in ("", state) else ""
    connections = status["connections"]
    head = (
        f"relay {status['version']}  [{colour}]{state}{reason}[/{colour}]  engine {status['engine']}  "
        f"pid {status['pid']}  up {duration(status['uptime_seconds'])}\n"
        f"connections {connections['active']} of {status['max_connections']} at most, "
        f"{connections['accepted']} accepted since the start; "
        f"log lines dropped {status['log_lines_dropped']}, accept pauses {status['accept_pauses']}"
    )
    if status["dial_queue"]:
        head += f", waiting for dial.rate {status['dial_queue']}"
    drain = status["drain"]
    if drain is not None:
        left = f", {duration(drain['seconds_left'])} left" if drain["seconds_left"] else ""
        head += f"\ndrain ({escape(drain['reason'])}): {drain['phase']}, {connections['active']} connections{left}"
        head += "; then the process ends" if drain["ends"] else ""
    events = status["scheduled_events"]
    if events is not None:
        if not events["ok"]:
            head += f"\n[yellow]scheduled events: {escape(events['error']) or 'no answer yet'}[/yellow]"
        for event in events["events"]:
            head += f"\nscheduled event: {escape(event['type'])}, in {duration(event['seconds_left'])}"
    return [
        head,
        _listeners(status["listeners"]),
        _upstreams(status["upstreams"]),
        _outcomes(connections["outcomes"]),
        _workers(status["workers"]),
    ]


def _listeners(listeners: list[dict[str, Any]]) -> Table:
    table = _table("listener", "bind", "upstream", right=("active", "accepted", "up", "down"))
    for item in listeners:
        table.add_row(
            escape(item["name"]),
            escape("\n".join(item["bind"])),  # the brackets of IPv6 are no markup
            escape("\n".join(item["upstream"])),
            str(item["active"]),
            str(item["accepted"]),
            size(item["bytes_up"]),
            size(item["bytes_down"]),
        )
    return table


def _upstreams(upstreams: list[dict[str, Any]]) -> Table:
    table = _table("upstream", "address", "state", right=("name resolved",))
    for item in upstreams:
        age = item["answer_age_seconds"]
        states = ["[green]up[/green]" if one["up"] else _down(one.get("reason", "")) for one in item["addresses"]]
        table.add_row(
            escape(item["name"]),
            escape("\n".join(one["address"] for one in item["addresses"])),
            "\n".join(states)
            or (f"[red]{escape(item['error'])}[/red]" if item["error"] else "[yellow]unknown[/yellow]"),
            "-" if age is None else f"{duration(age)} ago",
        )
    return table


def _down(reason: str) -> str:
    return f"[red]down: {escape(reason)}[/red]" if reason else "[red]down[/red]"


def _outcomes(outcomes: dict[str, int]) -> Table:
    table = _table("outcome", right=("connections",))
    for label, count in outcomes.items():
        if count:
            table.add_row(label, str(count))
    return table


def _workers(workers: list[dict[str, Any]]) -> Table:
    table = _table("worker", "state", right=("pid", "active", "held", "loop lag", "restarts"))
    for item in workers:
        state = "[red]hung[/red]" if item["hung"] else "ready" if item["ready"] else "[yellow]starting[/yellow]"
        table.add_row(
            str(item["index"]),
            state,
            str(item["pid"] or "-"),
            str(item["active"]),
            size(item["held_bytes"]),
            f"{item['loop_lag_seconds'] * 1000:.1f} ms",
            str(item["restarts"]),
        )
    return table


def _table(*left: str, right: tuple[str, ...]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in left:
        table.add_column(name, overflow="fold")
    for name in right:
        table.add_column(name, justify="right")
    return table


def size(count: int) -> str:
    """Bytes for people, powers of 1000."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < (1000 if unit == "B" else 999.95):  # 999.95 kB would be rounded to 1000.0
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def duration(seconds: float) -> str:
    """Seconds for people."""
    whole = int(seconds)
    days, whole = divmod(whole, 86400)
    hours, whole = divmod(whole, 3600)
    minutes, whole = divmod(whole, 60)
    parts = [f"{days}d" if days else "", f"{hours}h" if hours else "", f"{minutes}m" if minutes else "", f"{whole}s"]
    return " ".join([part for part in parts if part][:2])
