"""Listening sockets from the service manager, so that they outlive relay: sd_listen_fds(3) in Python.

`take_listening` finds them, `match` says whose each one is, `bindings` makes them what `prepare` starts with. Without a
manager that hands any over there is nothing in the environment, and all of it does nothing.
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
    """A listening TCP socket that the service manager has handed over.

    `name` is its FileDescriptorName=, by default the unit's name. `dual`: an IPv6 wildcard that takes IPv4 as well.
    """

    fd: int
    name: str
    host: str
    port: int
    dual: bool = False

    @property
    def address(self) -> str:
        """As the settings spell it."""
        return format_hostport(self.host, self.port)

    def serves(self, host: str, port: int) -> bool:
        """Whether who connects to this address gets to it."""
        return port == self.port and (host == self.host or (self.dual and host == "0.0.0.0"))

    def like(self, host: str) -> bool:
        """Whether it takes clients of that address's family."""
        return self.dual or (":" in host) == (":" in self.host)

    def __str__(self) -> str:
        return f'systemd\'s socket "{self.name}" at {self.address}'


class Listening(NamedTuple):
    """What was handed over, and a line for each socket that cannot be used."""

    sockets: list[Inherited]
    problems: list[str]


def take_listening(environ: MutableMapping[str, str], first: int = FIRST) -> Listening:
    """The sockets of LISTEN_FDS, sd_listen_fds_with_names(3), from descriptor `first` on. Raises nothing.

    Sets them close-on-exec and takes the variables out of `environ`, for workers get theirs in another way. None if
    they are for another process (LISTEN_PID).
    """
    names = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID")
    pid, count, titles, _ = (environ.pop(name, "") for name in names)
    found = Listening([], [])
    if pid != str(os.getpid()) or not count.isdecimal():
        return found
    called = titles.split(":")
    for number in range(int(count)):
        name = called[number] if number < len(called) and called[number] else "unknown"
        try:
            os.set_inheritable(first + number, False)
            found.sockets.append(_inherited(first + number, name))
        except (OSError, ValueError) as error:
            reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
            found.problems.append(f'systemd\'s socket "{name}", number {number + 1} of {count}: {reason}')
    return found


def _inherited(fd: int, name: str) -> Inherited:
    """Raises OSError (no socket) or ValueError (not one to accept from)."""
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


class Served(NamedTuple):
    """A socket, whose it is, and the addresses of that listener's `bind` in whose place it is."""

    socket: Inherited
    listener: str
    binds: list[str]


class Matched(NamedTuple):
    """Which socket is whose. With `problems` relay does not start; `notes` are for the log."""

    served: list[Served]
    problems: list[str]
    notes: list[str]


def match(inherited: Sequence[Inherited], listeners: Sequence[tuple[str, Sequence[str]]]) -> Matched:
    """Give the sockets to the listeners, each of which is its name and its `bind`.

    A socket belongs to the listener that has its address. Where it has a listener's name (FileDescriptorName=) and an
    address of its own, the socket unit is right, and relay does not listen at the address of the settings that it
    stands for. What is left of a listener relay binds itself.
    """
    result = Matched([], [], [])
    left = {(name, text): parse_hostport(text, allow_name=False) for name, bind in listeners for text in bind}
    later = []
    for sock in sorted(inherited, key=lambda item: item.dual):  # exact ones first
        mine = [place for place, address in left.items() if sock.serves(*address)]
        owners = {name for name, _ in mine}
        if len(owners) > 1:
            result.problems.append(f"{sock} takes IPv4 as well, and {_settings(owners)} differ: BindIPv6Only=ipv6-only")
        elif mine and sock.name in dict(listeners) and sock.name not in owners:
            result.problems.append(f"{sock} has the address of {_settings(owners)}: change that or FileDescriptorName=")
        elif mine:
            result.served.append(Served(sock, mine[0][0], [text for _, text in mine]))
        else:
            later.append(sock)
        for place in mine:
            del left[place]
    for sock in later:
        _stand_in(sock, left, [name for name, _ in listeners], result)
    result.notes.extend(f"{one.socket}: IPv4 clients are ::ffff:… there; use BindIPv6Only=ipv6-only and an address "
                        "of each family" for one in result.served if one.socket.dual)  # fmt: skip
    if inherited:
        result.notes.extend(f"listeners.{name}.bind: {text}: no ListenStream= of systemd's; relay binds it itself, and "
                            "its clients are refused while relay restarts" for name, text in left)  # fmt: skip
    return result


def _stand_in(sock: Inherited, left: dict[tuple[str, str], tuple[str, int]], names: list[str], result: Matched) -> None:
    """A socket at an address that is nobody's: by its name, in place of an address of each family that it takes."""
    free = [(place, host) for place, (host, _) in left.items() if place[0] == sock.name and sock.like(host)]
    taken = list({":" in host: place for place, host in reversed(free)}.values())
    if not taken:
        setting = f"listeners.{sock.name}.bind" if sock.name in names else "a listener's bind"
        result.problems.append(
            f"{sock} is no listener's: add the address to {setting}, or take it out of ListenStream=; or name its "
            f"listener with FileDescriptorName= (there are {', '.join(names)})"
        )
        return
    result.served.append(Served(sock, sock.name, [text for _, text in taken]))
    for name, text in taken:
        if left.pop((name, text))[1]:  # 0: any would do
            result.notes.append(f"listeners.{name}.bind: not {text}: {sock} takes its place")


def _settings(names: set[str]) -> str:
    return " and ".join(f"listeners.{name}.bind" for name in sorted(names))


def bindings(served: Sequence[Served], workers: int, tcp: TcpOptions) -> dict[str, Binding]:
    """The sockets as `prepare` takes them, by `binding.key`; the same one twice where it serves two addresses.

    Sets the options of `tcp` on each, for what is accepted from now on; what waits there already has the unit's.
    Raises OSError.
    """
    found: dict[str, Binding] = {}
    for one in served:
        sock = socket.socket(fileno=one.socket.fd)
        sock.setblocking(False)
        set_inherited(sock, tcp)
        keys = [key(one.listener, text) for text in one.binds]
        made = Binding(keys[0], one.socket.address, [sock] * workers, sock)
        found.update(dict.fromkeys(keys, made))
    return found
