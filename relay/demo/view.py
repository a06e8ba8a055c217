"""What `relay demo` shows while it runs: one picture for a terminal, one line where there is none.

Functions from the stand's numbers to text; they ask nobody and change nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from relay.commands.format import duration, size
from relay.demo import devices as states
from relay.demo import telemetry
from relay.demo.devices import Device
from relay.demo.once import milliseconds, outcomes

COLOURS = {states.CONNECTED: "green", states.RETRYING: "red"}


@dataclass(frozen=True, slots=True)
class Picture:
    """One moment of the demo."""

    seconds: float  # since the devices were started
    devices: Sequence[Device]
    received: Mapping[str, int]  # by the hub, messages by protocol
    hub_pid: int
    admin: str  # URL
    log: Path
    config: Path
    status: Mapping[str, Any] | None  # the relay's; None: its admin port does not answer


def terminal(picture: Picture) -> RenderableType:
    """For a terminal of 80 columns and 24 lines, the least that one is likely to have."""
    return Group(
        _row(
            f"relay demo  {duration(picture.seconds)}  devices -> relay -> stand-in hub on 127.0.0.1  Ctrl-C stops",
            style="bold",
        ),
        _devices(picture.devices),
        "",
        *_relay(picture.status),
        _hub(picture),
        "",
        *_where(picture),
    )


def line(picture: Picture) -> str:
    """For a pipe or a file."""
    accounts = [device.account for device in picture.devices]
    connected = sum(device.state == states.CONNECTED for device in picture.devices)
    return (
        f"{duration(picture.seconds)}: {connected} of {len(accounts)} devices connected,"
        f" sent {sum(one.sent for one in accounts)}, acknowledged {sum(one.acknowledged for one in accounts)},"
        f" hub received {sum(picture.received.values())}; relay {_traffic(picture.status)}"
    )


def _traffic(status: Mapping[str, Any] | None) -> str:
    if status is None:
        return "does not answer at its admin port"
    each = ", ".join(
        f"{item['name']} {item['active']} active {size(item['bytes_up'])} up {size(item['bytes_down'])} down"
        for item in status["listeners"]
    )
    return f"{status['state']}, {each}"


def _devices(devices: Sequence[Device]) -> Table:
    table = _table("device", "protocol", right=("sent", "acknowledged", "round trip ms"), last="state")
    for device in devices:
        account = device.account
        colour = COLOURS.get(device.state, "yellow")
        state = f"[{colour}]{device.state}[/{colour}]" + (f" {escape(device.error)}" if device.error else "")
        table.add_row(
            device.name,
            device.protocol,
            str(account.sent),
            str(account.acknowledged),
            milliseconds(account.round_trips[-1]) if account.round_trips else "-",
            state,
        )
    return table


def _relay(status: Mapping[str, Any] | None) -> list[RenderableType]:
    if status is None:
        return [Text("relay: its admin port does not answer", style="red")]
    table = _table("relay", right=("active", "accepted", "up", "down"), last="outcomes")
    for item in status["listeners"]:
        table.add_row(
            f"{item['name']} {_ports(item['bind'])} -> {_ports(item['upstream'])}",
            str(item["active"]),
            str(item["accepted"]),
            size(item["bytes_up"]),
            size(item["bytes_down"]),
            outcomes(item["outcomes"]),
        )
    workers = ", ".join(
        f"pid {one['pid'] or '-'} {one['active']} active" + ("" if one["ready"] else ", starting")
        for one in status["workers"]
    )
    state = f"{status['state']} ({status['reason']})" if status["reason"] else status["state"]
    return [table, _row(f"{state}, engine {status['engine']}; workers: {workers}")]


def _ports(addresses: Sequence[str]) -> str:
    """Without the host, which is the same for all."""
    return " ".join(":" + address.rpartition(":")[2] for address in addresses)


def _hub(picture: Picture) -> Text:
    by_protocol = ", ".join(f"{picture.received.get(name, 0)} {name}" for name in telemetry.PROTOCOLS)
    total = sum(picture.received.values())
    return _row(f"hub (pid {picture.hub_pid}) received {total}: {by_protocol}; it has no AMQP endpoint")


def _where(picture: Picture) -> list[Text]:
    return [
        _row(f"look: {picture.admin}/status  {picture.admin}/metrics"),
        _row(f"      relay status --admin {picture.admin}"),
        _row(f"      {picture.log}  {picture.config}"),
    ]


def _table(*left: str, right: Sequence[str], last: str) -> Table:
    """One line a row, so that the picture keeps its height: the last column takes what room is left, and is cut."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1), expand=True)
    for name in left:
        table.add_column(name, no_wrap=True)
    for name in right:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column(last, no_wrap=True, overflow="ellipsis", ratio=1)
    return table


def _row(text: str, style: str = "") -> Text:
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")
