"""Listening sockets: binds the addresses of the listeners, at the start, at a reload and after a drain."""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Collection, Mapping
from pathlib import Path

from relay.address import format_hostport, parse_hostport
from relay.engines.contract import TcpOptions
from relay.engines.options import BACKLOG, set_inherited
from relay.settings.model import Listener
from relay.supervisor.host import bind_error
from relay.supervisor.instance import Binding, Instance, StartError, tcp_options

ADDRESS_MISSING = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT})

ExistingBindings = Mapping[str, Binding]  # by `key`
LISTENING = "0A"  # TCP_LISTEN (net/tcp_states.h) in /proc/net/tcp

# Inodes of the listening sockets that this process has made. A worker's copy has the same inode, and may stay open
# after this process has closed its own.
_own: set[int] = set()


def key(name: str, text: str) -> str:
    """The key of a listener's address: the address itself, so that it may move to another listener.

    With port 0 the listener's name is part of it, for each listener gets a port of its own.
    """
    return f"{name} {text}" if text.endswith(":0") else text


def conflicts(address: str, others: Collection[str]) -> bool:
    """Whether bind(2) to `address` would fail with EADDRINUSE because of one of `others` (host:port or [host]:port).

    The same address or a wildcard of its port conflicts; [::] may take IPv4 as well.
    """
    host, port = parse_hostport(address, allow_name=False)
    for text in others:
        other, number = parse_hostport(text, allow_name=False)
        if number == port and (host == other or "::" in (host, other)):
            return True
        if number == port and (":" in host) == (":" in other) and "0.0.0.0" in (host, other):
            return True
    return False


def open_sockets(host: str, port: int, workers: int, tcp: TcpOptions, *, listen: bool = True) -> list[socket.socket]:
    """A listening socket for each worker, at an address where no other process listens; port 0: a free port.

    Where this relay itself still listens (an address that it is giving up, or a wildcard of the same port), the port
    cannot be claimed, and the sockets join its own. Without `listen` they are only bound. Raises OSError, with no
    socket left open.
    """
    sockets: list[socket.socket] = []
    try:
        claimed = True
        try:
            sockets.append(bind_listener(host, port, tcp, claim=True, listen=listen))
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not _listening(host, port) or _foreign_inodes(host, port):
                raise
            claimed = False
        else:
            port = sockets[0].getsockname()[1]
        while len(sockets) < workers:
            sockets.append(bind_listener(host, port, tcp, listen=listen))
        _own.update(os.fstat(sock.fileno()).st_ino for sock in sockets)
        if not claimed and _foreign_inodes(host, port):  # another process has just bound the port
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    except BaseException:
        for sock in sockets:
            sock.close()
        raise
    return sockets


def _foreign_inodes(host: str, port: int) -> set[int]:
    """Inodes of the listening sockets at an address that this process has not made."""
    return _listening(host, port) - _own


def _listening(host: str, port: int) -> set[int]:
    """Inodes of the listening sockets at this address or a wildcard of its port (proc_pid_net(5), tcp)."""
    family, file = (socket.AF_INET6, "tcp6") if ":" in host else (socket.AF_INET, "tcp")
    wanted = _as_in_proc(socket.inet_pton(family, host))
    nowhere = "0" * len(wanted)
    found = set()
    with Path("/proc/self/net", file).open() as lines:
        next(lines)
        for line in lines:
            fields = line.split()
            if fields[3] != LISTENING:
                break  # the kernel lists listening sockets first, then every connection
            address, _, number = fields[1].partition(":")
            if int(number, 16) == port and (address == wanted or nowhere in (address, wanted)):
                found.add(int(fields[9]))
    return found


def _as_in_proc(packed: bytes) -> str:
    """An address as /proc/net/tcp writes it: 32-bit words in the machine's byte order, in hexadecimal."""
    words = (packed[start : start + 4] for start in range(0, len(packed), 4))
    return "".join(f"{int.from_bytes(word, sys.byteorder):08X}" for word in words)


def bind(
    item: Listener,
    workers: int,
    tcp: TcpOptions,
    existing: ExistingBindings,
    problems: list[str],
    notes: list[str],
    *,
    listen: bool = True,
    ours: Collection[str] = (),
) -> list[Binding]:
    """Bind the addresses of one listener, with a socket per worker; those in `existing` are taken from there.

    An address that cannot be bound becomes one of `problems`; one of a family that the machine lacks becomes one of
    `notes` if the listener has others. Without `listen`, sockets are only bound, as a trial; `ours` are then the
    addresses of the running relay, which this process cannot share.
    """
    bindings: list[Binding] = []
    before = len(problems)
    for text in item.bind:
        if (made := existing.get(key(item.name, text))) is not None:
            if not any(made is other for other in bindings):  # an inherited socket may serve two addresses
                bindings.append(made)
            continue
        host, port = parse_hostport(text, allow_name=False)
        try:
            sockets = open_sockets(host, port, workers, tcp, listen=listen)
        except OSError as error:
            if not listen and error.errno == errno.EADDRINUSE and conflicts(text, ours):
                bindings.append(Binding(key(item.name, text), format_hostport(host, port), []))
                continue
            # A machine without IPv6 is no mistake if the listener has another address.
            if ":" in host and error.errno in ADDRESS_MISSING and len(item.bind) > 1:
                notes.append(f"listeners.{item.name}.bind: {text}: no IPv6 on this machine; not listening there")
                continue
            problems.append(f"listeners.{item.name}.bind: {text}: {bind_error(error, port)}")
            continue
        bindings.append(Binding(key(item.name, text), format_hostport(host, sockets[0].getsockname()[1]), sockets))
    if not bindings and len(problems) == before:
        problems.append(f"listeners.{item.name}.bind: none of its addresses can be had on this machine")
    return bindings


def bind_again(instance: Instance) -> None:
    """Listen at the instance's addresses again: on the old sockets, or on new ones where those are closed.

    Raises StartError if another process has taken an address meanwhile; then nothing has changed.
    """
    tcp, problems = tcp_options(instance.settings), []
    made: list[tuple[Binding, list[socket.socket]]] = []
    for bound in instance.listeners:
        for binding in bound.bindings:
            if binding.inherited is not None or binding.asked in instance.unlistened:
                continue
            host, port = parse_hostport(binding.address, allow_name=False)
            try:
                made.append((binding, open_sockets(host, port, instance.workers, tcp)))
            except OSError as error:
                problems.append(f"listeners.{bound.name}.bind: {binding.address}: {bind_error(error, port)}")
    if problems:
        for _, sockets in made:
            for sock in sockets:
                sock.close()
        raise StartError(problems)
    for binding in instance.bindings():
        instance.listen_again(binding)
    for binding, sockets in made:
        binding.rebind(sockets)


def bind_listener(host: str, port: int, tcp: TcpOptions, *, claim: bool = False, listen: bool = True) -> socket.socket:
    """A listening, non-blocking socket that shares its port with the other workers' sockets (SO_REUSEPORT).

    `host` is a literal address; port 0: a free port. With `claim` it fails if any other socket listens there, that of
    another relay included. Without `listen` the socket is only bound, so that no client can connect. Raises OSError.

    SO_REUSEPORT alone would let two relays of the same user share a port, each with half of the connections. A claim
    sets that option only after listen(2): until then the kernel refuses bind(2) or listen(2) to every other socket,
    and afterwards to every other claim (inet_csk_bind_conflict, net/ipv4/inet_connection_sock.c). So of two relays that
    start at the same moment one gets the port and keeps it. The sockets that join later take the claim into their group
    (reuseport_add_sock, net/core/sock_reuseport.c), so it gets its share of the connections.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK, socket.IPPROTO_TCP)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if not claim:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            # [::] must not take 0.0.0.0's port as well, and every client has an address of its own family.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        set_inherited(sock, tcp)
        sock.bind((host, port))
        if listen:
            sock.listen(BACKLOG)
        if claim:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    except BaseException:
        sock.close()
        raise
    return sock
