"""The output of `relay demo` while it runs: a picture for a terminal, a line elsewhere.

Pure functions from the demo's numbers to text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from relay.commands.format import duration, size
from relay.demo import devices as states
from relay.demo import telemetry
from relay.demo.devices import Device
from relay.demo.once import milliseconds, outcomes
from relay.supervisor.admin.status_schema import RelayStatus

COLOURS = {states.CONNECTED: "green", states.RETRYING: "red"}


@dataclass(frozen=True, slots=True)
class Picture:
    """The state of the demo at one moment."""

    seconds: float  # since the devices were started
    devices: Sequence[Device]
    received: Mapping[str, int]  # messages that the hub received, by protocol
    hub_pid: int
    admin: str  # URL
    log: Path
    config: Path
    status: RelayStatus | None  # the relay's /status; None: its admin port does not answer


def terminal(picture: Picture) -> RenderableType:
    """The picture, for a terminal of 80 columns and 24 lines or more."""
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
    """The same as one line, for a pipe or a file."""
    accounts = [device.account for device in picture.devices]
    connected = sum(device.state == states.CONNECTED for device in picture.devices)
    return (
        f"{duration(picture.seconds)}: {connected} of {len(accounts)} devices connected,"
        f" sent {sum(account.sent for account in accounts)},"
        f" acknowledged {sum(account.acknowledged for account in accounts)},"
        f" hub received {sum(picture.received.values())}; relay {_traffic(picture.status)}"
    )


def _traffic(status: RelayStatus | None) -> str:
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


def _relay(status: RelayStatus | None) -> list[RenderableType]:
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
        f"pid {worker['pid'] or '-'} {worker['active']} active" + ("" if worker["ready"] else ", starting")
        for worker in status["workers"]
    )
    state = f"{status['state']} ({status['reason']})" if status["reason"] else status["state"]
    return [table, _row(f"{state}, engine {status['engine']}; workers: {workers}")]


def _ports(addresses: Sequence[str]) -> str:
    """Addresses without the host, which is loopback for all of them."""
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
    """A table of one line per row, so that the picture keeps its height; the last column is cut to the room left."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1), expand=True)
    for name in left:
        table.add_column(name, no_wrap=True)
    for name in right:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column(last, no_wrap=True, overflow="ellipsis", ratio=1)
    return table


def _row(text: str, style: str = "") -> Text:
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")
