"""`relay status`: the state of a running relay, read once from its admin port, as tables for people or as JSON."""

from __future__ import annotations

import json
import os
import sys

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from relay.commands.admin_client import Unreachable, fetch
from relay.commands.format import duration, size
from relay.supervisor.admin.status_schema import (
    CustomerStatus,
    ListenerStatus,
    RelayStatus,
    UpstreamStatus,
    WorkerStatus,
)

WIDE = 100_000  # columns of output that is not a terminal: no line is wrapped
NUMBERS = ("active", "accepted", "up", "down")
MOST_CUSTOMERS = 20  # of the customers with most connections, that are shown


def run(admin: str, *, as_json: bool) -> int:
    """Print the status of the relay at the URL `admin`. Returns 0, or 1 if no relay answers."""
    try:
        status = fetch(admin)
    except Unreachable as error:
        print(f"relay: {error}", file=sys.stderr)
        return 1
    if as_json:
        print(json.dumps(status, indent=2))
        return 0
    show(status, terminal())
    return 0


def terminal() -> Console:
    """Standard output as a console. Lines are wrapped for a terminal only, so that a pipe to grep gets whole lines."""
    wide = None if sys.stdout.isatty() or "COLUMNS" in os.environ else WIDE
    return Console(highlight=False, emoji=False, width=wide)


def show(status: RelayStatus, console: Console) -> None:
    """Print the status. Names and addresses are never cut or wrapped: a narrow console gets another layout."""
    for part in render(status, console.width):
        if isinstance(part, Table):
            part.width = max(_width(part), 1)
        console.print(part, crop=False, overflow="ignore", no_wrap=isinstance(part, Text))


def render(status: RelayStatus, width: int) -> list[str | Text | Table]:
    """The status as a headline and tables, for a console of `width` columns.

    Only the headline is parsed for markup. Elsewhere, text that looks like markup (the brackets of an IPv6 address) or
    like an emoji's name (":1234:") is shown as it is.
    """
    state = status["state"]
    colour = {"ready": "green", "draining": "yellow", "starting": "yellow"}.get(state, "red")
    reason = f" ({escape(status['reason'])})" if status["reason"] not in ("", state) else ""
    connections = status["connections"]
    head = (
        f"relay {status['version']}  [{colour}]{state}{reason}[/{colour}]  engine {status['engine']}  "
        f"pid {status['pid']}  up {duration(status['uptime_seconds'])}\n"
        f"connections {connections['active']} of {status['max_connections']} at most, "
        f"{connections['accepted']} accepted since the start\n"
        f"log lines dropped {status['log_lines_dropped']}, accept pauses {status['accept_pauses']}"
    )
    if status["dial_queue"]:
        head += f", waiting for dial.rate {status['dial_queue']}"
    drain = status["drain"]
    if drain is not None:
        left = f", {duration(drain['seconds_left'])} left" if drain["seconds_left"] else ""
        head += f"\ndrain ({escape(drain['reason'])}): {drain['phase']}, {connections['active']} connections{left}"
        head += "; then the process ends" if drain["ends"] else ""
    source = status.get("settings_source")
    if source is not None and not source["up"]:
        head += f"\n[yellow]settings source: {escape(source['error'])}[/yellow]"
    elif source is not None and source["held_back"]:
        head += f"\nsettings held back: {escape(source['held_back'])}"
    events = status["scheduled_events"]
    if events is not None:
        if not events["ok"]:
            head += f"\n[yellow]scheduled events: {escape(events['error']) or 'no answer yet'}[/yellow]"
        for event in events["events"]:
            head += f"\nscheduled event: {escape(event['type'])}, in {duration(event['seconds_left'])}"
    return [
        head,
        *_listeners(status["listeners"], width),
        *_routes(status["listeners"]),
        *_customers(status.get("customers", [])),
        *_upstreams(status["upstreams"], width),
        _outcomes(connections["outcomes"]),
        _workers(status["workers"]),
    ]


def _listeners(listeners: list[ListenerStatus], width: int) -> list[Text | Table]:
    """A row per listener with its addresses; if that is too wide, rows of numbers, and the addresses on lines below."""
    whole = _table("listener", "bind", "upstream", right=NUMBERS)
    numbers = _table("listener", right=NUMBERS)
    lines: list[Text | Table] = []
    for item in listeners:
        counts = [str(item["active"]), str(item["accepted"]), size(item["bytes_up"]), size(item["bytes_down"])]
        whole.add_row(Text(item["name"]), Text("\n".join(item["bind"])), Text("\n".join(item["upstream"])), *counts)
        numbers.add_row(Text(item["name"]), *counts)
        line = f"{item['name']}: {', '.join(item['bind'])}"
        separate = [f"{item['name']}:", *(f"  {address}" for address in item["bind"])]
        lines += [Text(text) for text in ([line] if len(line) <= width else separate)]
        lines += [Text(f"  -> {upstream}") for upstream in item["upstream"]]
    return [whole] if _width(whole) <= width else [numbers, *lines]


def _routes(listeners: list[ListenerStatus]) -> list[Text | Table]:
    """A row per route, below those of the listeners; nothing without routes, or from a relay that knows none."""
    table = _table("route", "state", right=NUMBERS)
    for item in listeners:
        for route in item.get("routes", ()):
            colour = {"up": "green", "down": "red", "backup": "yellow"}.get(route["state"], "")
            counts = [str(route["active"]), str(route["accepted"]), size(route["bytes_up"]), size(route["bytes_down"])]
            table.add_row(Text(f"{item['name']}.{route['name']}"), Text(route["state"], colour), *counts)
    return [table] if table.row_count else []


def _customers(customers: list[CustomerStatus]) -> list[Text | Table]:
    """A row for each of the MOST_CUSTOMERS customers with most connections; nothing without customers."""
    table = _table("customer", "limit", "refused", right=NUMBERS)
    for item in sorted(customers, key=lambda item: (-item["active"], item["name"]))[:MOST_CUSTOMERS]:
        counts = [str(item["active"]), str(item["accepted"]), size(item["bytes_up"]), size(item["bytes_down"])]
        limit, refused = item["max_connections"], sum(item["refused"].values())
        refusals = Text(str(refused) if refused else "", "yellow")
        table.add_row(Text(item["name"]), Text(str(limit) if limit else ""), refusals, *counts)
    more = len(customers) - MOST_CUSTOMERS
    return [table, *([Text(f"and {more} customers with fewer connections")] if more > 0 else [])] if customers else []


def _upstreams(upstreams: list[UpstreamStatus], width: int) -> list[Text | Table]:
    """A row per upstream with its addresses beside it; if that is too wide, each address in a row below it."""
    whole = _table("upstream", "address", "state", "resolved")
    narrow = _table("upstream, addresses", "state", "resolved")
    for item in upstreams:
        addresses, age = [entry["address"] for entry in item["addresses"]], item["answer_age_seconds"]
        states = [Text("up", "green") if entry["up"] else _down(entry.get("reason", "")) for entry in item["addresses"]]
        state = Text(item["error"], "red") if item["error"] else Text("unknown", "yellow")
        resolved = Text("" if age is None else f"{duration(age)} ago")
        whole.add_row(
            Text(item["name"]), Text("\n".join(addresses)), Text("\n").join(states) if states else state, resolved
        )
        narrow.add_row(Text(item["name"]), Text() if states else state, resolved)
        for address, address_state in zip(addresses, states, strict=True):
            narrow.add_row(Text(f"  {address}"), address_state)
    return [whole if _width(whole) <= width else narrow]


def _down(reason: str) -> Text:
    return Text(f"down: {reason}" if reason else "down", "red")


def _outcomes(outcomes: dict[str, int]) -> Table:
    table = _table("outcome", right=("connections",))
    for label, count in outcomes.items():
        if count:
            table.add_row(label, str(count))
    return table


def _workers(workers: list[WorkerStatus]) -> Table:
    table = _table("worker", "state", right=("pid", "active", "held", "loop lag", "restarts"))
    for item in workers:
        state = Text("hung", "red") if item["hung"] else Text("ready") if item["ready"] else Text("starting", "yellow")
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


def _table(*left: str, right: tuple[str, ...] = ()) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in left:
        table.add_column(name, no_wrap=True, overflow="ignore")
    for name in right:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _width(table: Table) -> int:
    """The width of a table, in columns, when nothing in it is wrapped."""
    return Console(width=WIDE).measure(table).maximum
