"""Listening sockets for the listeners of the settings: made, made again, or taken over from the service manager."""

from __future__ import annotations

import errno
import socket
from collections.abc import Collection, Mapping

from relay import listener
from relay.address import format_hostport, parse_hostport
from relay.engines.contract import TcpOptions
from relay.machine import bind_error
from relay.plan import Binding, Plan, StartError, tcp_options
from relay.settings import Listener

ADDRESS_MISSING = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT})

Kept = Mapping[str, Binding]  # what is listened on already, by `key`
Port = tuple[bool, int]  # whether it is IPv6's


def key(name: str, text: str) -> str:
    """What an address of a listener is kept by: itself, so that it may move to another listener, if it names a port."""
    return f"{name} {text}" if text.endswith(":0") else text


def port_of(address: str) -> Port:
    """The port of host:port or [host]:port."""
    host, port = parse_hostport(address, allow_name=False)
    return ":" in host, port


def claim(item: Listener, kept: Kept, ours: Collection[Port], *, listen: bool) -> dict[str, OSError]:
    """The addresses of one listener that somebody else has, or that this machine has not, by their text.

    For every listener before the first is bound: 0.0.0.0:443 could not be claimed beside one's own 127.0.0.1:443.
    Addresses of `kept`, ports of `ours` and port 0 are left out.
    """
    refused: dict[str, OSError] = {}
    for text in item.bind:
        host, port = parse_hostport(text, allow_name=False)
        if port and key(item.name, text) not in kept and port_of(text) not in ours:
            try:
                listener.claim_port(host, port, listen=listen)
            except OSError as error:
                refused[text] = error
    return refused


def bind(
    item: Listener,
    workers: int,
    tcp: TcpOptions,
    kept: Kept,
    ours: Collection[Port],
    refused: Mapping[str, OSError],
    problems: list[str],
    notes: list[str],
    *,
    listen: bool = True,
) -> list[Binding]:
    """The addresses of one listener, one socket per worker for each that is not in `kept`.

    `ours`: ports of which this relay has sockets already, some perhaps about to be closed. `refused`: what `claim`
    found. What cannot be bound becomes a problem, or a note if others are left. Without `listen`, sockets are only
    bound, and a port of `ours` may be the running relay's, which this process cannot share.
    """
    bindings: list[Binding] = []
    before = len(problems)
    for text in item.bind:
        if (made := kept.get(key(item.name, text))) is not None:
            if not any(made is other for other in bindings):  # one socket of the service manager's for two addresses
                bindings.append(made)
            continue
        host, port = parse_hostport(text, allow_name=False)
        sockets: list[socket.socket] = []
        try:
            if text in refused:
                raise refused[text]
            if not port:
                port = listener.claim_port(host, port, listen=listen)
            for _ in range(workers):  # those that were made are closed if another cannot be
                sockets += [listener.bind_listener(host, port, tcp, listen=listen)]
        except OSError as error:
            for sock in sockets:
                sock.close()
            if not listen and error.errno == errno.EADDRINUSE and port_of(text) in ours:
                bindings.append(Binding(key(item.name, text), format_hostport(host, port), []))
                continue
            # A machine without IPv6 is no mistake as long as the listener has another address.
            if ":" in host and error.errno in ADDRESS_MISSING and len(item.bind) > 1:
                notes.append(f"listeners.{item.name}.bind: {text}: no IPv6 on this machine; not listening there")
                continue
            problems.append(f"listeners.{item.name}.bind: {text}: {bind_error(error, port)}")
            continue
        bindings.append(Binding(key(item.name, text), format_hostport(host, port), sockets))
    if not bindings and len(problems) == before:
        problems.append(f"listeners.{item.name}.bind: none of its addresses can be had on this machine")
    return bindings


def bind_again(plan: Plan) -> None:
    """Listen at the same addresses as before, on new sockets where the old ones are closed. Raises StartError."""
    tcp, problems = tcp_options(plan.settings), []
    made: list[tuple[Binding, list[socket.socket]]] = []
    for bound in plan.listeners:
        for binding in bound.bindings:
            if binding.inherited is not None or binding.asked in plan.left:
                continue
            host, port = parse_hostport(binding.address, allow_name=False)
            sockets: list[socket.socket] = []
            made.append((binding, sockets))
            try:
                for _ in range(plan.workers):
                    sockets += [listener.bind_listener(host, port, tcp)]
            except OSError as error:
                problems.append(f"listeners.{bound.name}.bind: {binding.address}: {bind_error(error, port)}")
    if problems:
        for _, sockets in made:
            for sock in sockets:
                sock.close()
        raise StartError(problems)
    for binding in plan.bindings():
        plan.take_back(binding)
    for binding, sockets in made:
        binding.sockets = sockets
