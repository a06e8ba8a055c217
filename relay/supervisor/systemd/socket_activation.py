"""Socket activation: listening sockets that the service manager holds, so that they outlive relay. sd_listen_fds(3).

`listen_fds` takes them over, `assign` gives each one to a listener of the settings, `bindings` turns them into what
`prepare` starts with. Without LISTEN_FDS in the environment there are no sockets, and all three return nothing.
"""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from relay.address import format_hostport, parse_hostport
from relay.engines.contract import TcpOptions
from relay.engines.options import set_inherited
from relay.supervisor.instance import Binding
from relay.supervisor.listening import key

FIRST = 3  # SD_LISTEN_FDS_START


@dataclass(frozen=True, slots=True)
class Inherited:
    """A listening TCP socket from the service manager.

    `name` is its FileDescriptorName=, by default the unit's name. `dual`: an IPv6 wildcard that accepts IPv4 as well.
    """

    fd: int
    name: str
    host: str
    port: int
    dual: bool = False

    @property
    def address(self) -> str:
        """Its address as the settings write it."""
        return format_hostport(self.host, self.port)

    def serves(self, host: str, port: int) -> bool:
        """Whether connections to this address arrive at the socket."""
        return port == self.port and (host == self.host or (self.dual and host == "0.0.0.0"))

    def accepts_family(self, host: str) -> bool:
        """Whether the socket accepts clients of this address's family."""
        return self.dual or (":" in host) == (":" in self.host)

    def __str__(self) -> str:
        return f'systemd\'s socket "{self.name}" at {self.address}'


class ListenFds(NamedTuple):
    """The sockets taken over, and one line for each that cannot be used."""

    sockets: list[Inherited]
    problems: list[str]


def listen_fds(environ: MutableMapping[str, str], first: int = FIRST) -> ListenFds:
    """The sockets of LISTEN_FDS, sd_listen_fds_with_names(3), from descriptor `first` on. Raises nothing.

    Sets them close-on-exec and removes the variables from `environ`, as workers get their sockets over the channel.
    No sockets if LISTEN_PID names another process.
    """
    names = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID")
    pid, count, joined_names, _ = (environ.pop(name, "") for name in names)
    found = ListenFds([], [])
    if pid != str(os.getpid()) or not count.isdecimal():
        return found
    fd_names = joined_names.split(":")
    for number in range(int(count)):
        name = fd_names[number] if number < len(fd_names) and fd_names[number] else "unknown"
        try:
            os.set_inheritable(first + number, False)
            found.sockets.append(_inherited(first + number, name))
        except (OSError, ValueError) as error:
            reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
            found.problems.append(f'systemd\'s socket "{name}", number {number + 1} of {count}: {reason}')
    return found


def _inherited(fd: int, name: str) -> Inherited:
    """The socket at `fd`. Raises OSError (no socket) or ValueError (not a listening TCP socket)."""
    sock = socket.socket(fileno=fd)
    try:
        if sock.family not in (socket.AF_INET, socket.AF_INET6) or sock.proto != socket.IPPROTO_TCP:
            raise ValueError("is not TCP; use ListenStream= with an address and a port")
        if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise ValueError("does not listen; use ListenStream= with Accept=no")
        host, port = sock.getsockname()[:2]
        v6only = sock.family == socket.AF_INET or sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
        return Inherited(fd, name, host, port, host == "::" and not v6only)
    finally:
        sock.detach()


class Assigned(NamedTuple):
    """A socket, its listener, and the addresses of that listener's `bind` that the socket stands for."""

    socket: Inherited
    listener: str
    binds: list[str]


class Assignment(NamedTuple):
    """The listener of each socket. `problems` prevent a start; `notes` are warnings for the log."""

    assigned: list[Assigned]
    problems: list[str]
    notes: list[str]


def assign(inherited: Sequence[Inherited], listeners: Sequence[tuple[str, Sequence[str]]]) -> Assignment:
    """Assign each socket to a listener; `listeners` are (name, bind) pairs.

    A socket belongs to the listener whose `bind` has its address. A socket with a listener's name (FileDescriptorName=)
    at an address that no listener has overrides the settings: relay does not listen at the address of `bind` that it
    stands for. relay itself binds the addresses of `bind` without a socket.
    """
    result = Assignment([], [], [])
    left = {(name, text): parse_hostport(text, allow_name=False) for name, bind in listeners for text in bind}
    unmatched = []
    for sock in sorted(inherited, key=lambda item: item.dual):  # exact addresses before dual-stack wildcards
        matching = [place for place, address in left.items() if sock.serves(*address)]
        owners = {name for name, _ in matching}
        if len(owners) > 1:
            result.problems.append(
                f"{sock} takes IPv4 as well, and so the addresses of {_settings(owners)}: use BindIPv6Only=ipv6-only"
            )
        elif matching and sock.name in dict(listeners) and sock.name not in owners:
            result.problems.append(f"{sock} has the address of {_settings(owners)}: change that or FileDescriptorName=")
        elif matching:
            result.assigned.append(Assigned(sock, matching[0][0], [text for _, text in matching]))
        else:
            unmatched.append(sock)
        for place in matching:
            del left[place]
    for sock in unmatched:
        _assign_by_name(sock, left, [name for name, _ in listeners], result)
    result.notes.extend(f"{one.socket}: IPv4 clients are ::ffff:… there; use BindIPv6Only=ipv6-only and an address "
                        "of each family" for one in result.assigned if one.socket.dual)  # fmt: skip
    if inherited:
        result.notes.extend(f"listeners.{name}.bind: {text}: no ListenStream= of systemd's; relay binds it itself, and "
                            "its clients are refused while relay restarts" for name, text in left)  # fmt: skip
    return result


def _assign_by_name(
    sock: Inherited, left: dict[tuple[str, str], tuple[str, int]], names: list[str], result: Assignment
) -> None:
    """Assign a socket at an address of no listener: by its name, for one `bind` address of each family it accepts."""
    free = [(place, host) for place, (host, _) in left.items() if place[0] == sock.name and sock.accepts_family(host)]
    taken = list({":" in host: place for place, host in reversed(free)}.values())
    if not taken:
        setting = f"listeners.{sock.name}.bind" if sock.name in names else "a listener's bind"
        result.problems.append(
            f"{sock} is no listener's: add the address to {setting}, or take it out of ListenStream=; or name its "
            f"listener with FileDescriptorName= (there are {', '.join(names)})"
        )
        return
    result.assigned.append(Assigned(sock, sock.name, [text for _, text in taken]))
    for name, text in taken:
        if left.pop((name, text))[1]:  # port 0 in the settings means any port: nothing to note
            result.notes.append(f"listeners.{name}.bind: not {text}: {sock} takes its place")


def _settings(names: set[str]) -> str:
    return " and ".join(f"listeners.{name}.bind" for name in sorted(names))


def bindings(assigned: Sequence[Assigned], workers: int, tcp: TcpOptions) -> dict[str, Binding]:
    """The sockets as `prepare` takes them, by `listening.key`; one that serves two addresses is there twice.

    Sets the options of `tcp` on each socket, for connections that arrive from now on; those already in the accept queue
    keep the unit's. Raises OSError.
    """
    found: dict[str, Binding] = {}
    for one in assigned:
        sock = socket.socket(fileno=one.socket.fd)
        sock.setblocking(False)
        set_inherited(sock, tcp)
        keys = [key(one.listener, text) for text in one.binds]
        made = Binding(keys[0], one.socket.address, [sock] * workers, sock)
        found.update(dict.fromkeys(keys, made))
    return found
