"""A relay that runs beside this command: its listening addresses, its environment, and the settings of its start.

The values come from its admin port, and from /proc (proc(5)) if its process number is given, which needs the same user
or root. A value that cannot be found out stays empty, and `Running.unknown` says why.
"""

from __future__ import annotations

import os
import re
import socket
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from relay.address import format_hostport, parse_hostport
from relay.commands.admin_client import NoAdminPort, Unreachable, at_bind, fetch
from relay.settings.model import Settings, SettingsError, value
from relay.settings.names import PREFIX, variables
from relay.settings.schema import leaves_of
from relay.settings.sources import printable
from relay.supervisor.admin.status_schema import RelayStatus
from relay.supervisor.host import has_address
from relay.supervisor.reload import refusal

PROC = Path("/proc")
MAX_SHOWN = 60  # characters of a variable's value in a message
_LISTEN = "0A"  # TCP_LISTEN of net/tcp_states.h, as /proc/PID/net/tcp writes it
_SOCKET = re.compile(r"socket:\[(\d+)\]")


@dataclass(frozen=True, slots=True)
class Running:
    """What is known about a running relay."""

    pid: int
    addresses: frozenset[str]  # host:port of its listeners, admin port and health port
    variables: Mapping[str, str] | None = None  # the RELAY_… variables of its start; None: unknown
    start_only: Mapping[str, Any] = field(default_factory=dict)  # settings that only a start applies; empty: unknown
    draining: bool = False
    unknown: tuple[str, ...] = ()  # a line for each value that could not be found out


def find(settings: Settings) -> Running | None:
    """The relay that answers at the admin port of these settings. None: there is no such port, or no relay answers.

    Only an address of this machine is tried: at any other address, the relay of another machine would answer.
    """
    bind = settings.admin.bind
    if bind and not has_address(parse_hostport(bind, allow_name=False)[0]):
        return None
    try:
        status = fetch(at_bind(bind))
    except (NoAdminPort, Unreachable):
        return None
    return _from_status(status)


def inspect(pid: int, settings: Settings) -> Running:
    """The relay whose supervisor is process number `pid`, from /proc and from the admin port of `settings`.

    Raises ProcessLookupError if there is no such process.
    """
    try:
        os.kill(pid, 0)
    except PermissionError:
        pass  # it exists, and belongs to another user
    unknown: list[str] = []
    variables: dict[str, str] | None = None
    addresses: frozenset[str] = frozenset()
    try:
        variables = environment(pid)
    except OSError as error:
        unknown.append(
            f"the environment of process {pid} cannot be compared: {_why(error)}; check as its user, or as root"
        )
    answer = find(settings)
    if answer is None or answer.pid != pid:
        unknown.append(
            f"process {pid} cannot be asked at admin.bind ({settings.admin.bind or 'off'}): settings that only a "
            "restart applies are not compared"
        )
        answer = None
    try:
        addresses = listening(pid)
    except OSError as error:
        if answer is None:
            unknown.append(f"the ports of process {pid} are unknown, and a port in use may be its own: {_why(error)}")
    if answer is None:
        return Running(pid, addresses, variables, unknown=tuple(unknown))
    return Running(
        pid, addresses | answer.addresses, variables, answer.start_only, answer.draining, unknown=tuple(unknown)
    )


def _from_status(status: RelayStatus) -> Running:
    """What /status says about a relay. An older version leaves out some fields."""
    binds = [bind for item in status.get("listeners", ()) for bind in item.get("bind", ())]
    binds += status.get("http_ports", {}).values()
    return Running(
        status.get("pid", 0),
        frozenset(binds),
        start_only=status.get("start_only", {}),
        draining=status.get("drain") is not None,
    )


def _why(error: OSError) -> str:
    return os.strerror(error.errno or 0).lower()


def environment(pid: int) -> dict[str, str]:
    """The RELAY_… variables that a process was started with. Raises OSError."""
    found = {}
    for entry in (PROC / str(pid) / "environ").read_bytes().split(b"\0"):
        name, _, text = os.fsdecode(entry).partition("=")
        if name.startswith(PREFIX):
            found[name] = text
    return found


def listening(pid: int) -> frozenset[str]:
    """host:port of every TCP socket that a process listens on. Raises OSError."""
    inodes = set()
    for descriptor in (PROC / str(pid) / "fd").iterdir():
        try:
            match = _SOCKET.fullmatch(str(descriptor.readlink()))
        except FileNotFoundError:
            continue  # closed meanwhile
        if match is not None:
            inodes.add(match[1])
    return frozenset(address for inode, address in _all_listening(pid) if inode in inodes)


def _all_listening(pid: int) -> Iterator[tuple[str, str]]:
    """Inode and host:port of every listening TCP socket in a process's network namespace."""
    for name, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        with (PROC / str(pid) / "net" / name).open() as table:
            next(table)
            for line in table:
                fields = line.split()
                if fields[3] != _LISTEN:
                    break  # the kernel writes listening sockets first, and a million others may follow
                host, _, port = fields[1].partition(":")
                words = [int(host[at : at + 8], 16) for at in range(0, len(host), 8)]
                text = socket.inet_ntop(family, struct.pack(f"={len(words)}I", *words))  # each in the host's byte order
                yield fields[9], format_hostport(text, int(port, 16))


def reload_problems(
    running: Running, here: Settings, environ: Mapping[str, str], load: Callable[[Mapping[str, str]], Settings]
) -> list[str]:
    """The reasons, a line each, why a reload of `running` would not put the settings `here` into effect.

    `here` was loaded with `environ`; `load` reads the settings with other variables. Empty if the reload would apply
    them, as far as that can be known.
    """
    problems = ["draining: undrain first, or let it end"] if running.draining else []
    there = here
    if running.variables is not None:
        others = {name: text for name, text in environ.items() if not name.startswith(PREFIX)}
        try:
            there = load({**others, **running.variables})
        except SettingsError as error:
            problems += [f"with the environment of the running relay: {problem}" for problem in error.problems]
        problems += _variables(running.variables, environ, here, there)
    for name, sent in running.start_only.items():
        before, after = tuple(sent) if isinstance(sent, list) else sent, value(there, name)
        if before != after:
            problems.append(refusal(name, before, after))
    if not running.start_only and running.addresses:
        for name, bind in (("admin.bind", there.admin.bind), ("health.bind", there.health.bind)):
            if bind and not bind.endswith(":0") and bind not in running.addresses:
                problems.append(f"{name}: the running relay does not listen at {bind}, and only a restart can make it")
    return problems


def _variables(
    running: Mapping[str, str], environ: Mapping[str, str], here: Settings, there: Settings
) -> Iterator[str]:
    """A line for each variable whose value here differs from the running relay's, and changes a setting."""
    names = {variable: setting.name for setting in leaves_of(Settings) for variable in variables(setting.name)}
    for variable in sorted({*running, *(name for name in environ if name.startswith(PREFIX))}):
        before, after = running.get(variable), environ.get(variable)
        name = names.get(variable, "")
        if name == "upstream":
            name = "listeners"  # `upstream` is the short form of it
        # No difference: the same value in another spelling, or the value that the file has anyway.
        if before != after and (here is there or not name or value(here, name) != value(there, name)):
            yield (
                f"{variable} is {_shown(before)} in the environment of the running relay and {_shown(after)} here: "
                "only a restart applies it"
            )


def _shown(text: str | None) -> str:
    if text is None:
        return "not set"
    if not text:
        return "empty"
    return printable(text[:MAX_SHOWN]) + ("…" if len(text) > MAX_SHOWN else "")
