"""Checks and acquires all that a start needs from this machine, in the same way for `relay run` and `relay check`.

`run` goes on with the result. `check` makes a trial: its sockets are bound but do not listen, so that no client can
connect, and an address that a running relay has counts as free.
"""

from __future__ import annotations

import errno
import os
import socket

from relay.address import parse_hostport
from relay.settings.model import Settings
from relay.supervisor.cpus import usable_cpus
from relay.supervisor.host import bind_error
from relay.supervisor.instance import Binding, Instance, StartError, tcp_options
from relay.supervisor.listening import conflicts
from relay.supervisor.prepare import prepare, watchdog_notes
from relay.supervisor.systemd.socket_activation import ListenFds, assign, bindings

BACKLOG = 128  # accept queue of the admin and health ports until `HttpServer` starts
Http = dict[str, socket.socket]  # "admin" and "health", if they are on


def preflight(settings: Settings, taken: ListenFds, watchdog: float) -> tuple[Instance, Http]:
    """The instance with its listening sockets, and the sockets of the admin and health ports.

    `taken` are the service manager's sockets; `watchdog` is its timeout in seconds, 0: off. Raises StartError with
    every problem found.
    """
    return _preflight(settings, taken, watchdog, {}, frozenset(), listen=True)


def trial(settings: Settings, taken: ListenFds, watchdog: float, held: frozenset[str]) -> Instance:
    """The instance that a start would have, with its sockets closed again. Raises StartError, as `preflight` does.

    `held` are the addresses (host:port) of a running relay, which count as free.
    """
    existing = {address: Binding(address, address, []) for address in held}
    instance, http = _preflight(settings, taken, watchdog, existing, held, listen=False)
    instance.close_sockets()
    for sock in http.values():
        sock.close()
    return instance


def _preflight(
    settings: Settings,
    taken: ListenFds,
    watchdog: float,
    existing: dict[str, Binding],
    ours: frozenset[str],
    *,
    listen: bool,
) -> tuple[Instance, Http]:
    problems: list[str] = []
    http: Http = {}
    instance: Instance | None = None
    try:
        instance = _inherit(settings, taken, watchdog, existing, ours, listen=listen)
    except StartError as error:
        problems += error.problems
    try:
        http = _bind_http(settings, ours, listen=listen)
    except StartError as error:
        problems += error.problems
    if problems or instance is None:
        if instance is not None:
            instance.close_sockets()
        for sock in http.values():
            sock.close()
        raise StartError(problems)
    instance.notes.extend(watchdog_notes(settings, watchdog))
    return instance, http


def _inherit(
    settings: Settings,
    taken: ListenFds,
    watchdog: float,
    existing: dict[str, Binding],
    ours: frozenset[str],
    *,
    listen: bool,
) -> Instance:
    """Prepare the instance on the service manager's sockets, if there are any. Raises StartError."""
    assignment = assign(taken.sockets, [(item.name, item.bind) for item in settings.listeners])
    if problems := taken.problems + assignment.problems:
        raise StartError(problems)
    try:
        inherited = bindings(assignment.assigned, settings.workers or usable_cpus(), tcp_options(settings))
    except OSError as error:
        raise StartError([f"systemd's sockets: {os.strerror(error.errno or 0).lower()}"]) from None
    instance = prepare(settings, {**existing, **inherited}, ours=ours, listen=listen, watchdog=watchdog)
    instance.notes.extend(assignment.notes)
    return instance


def _bind_http(settings: Settings, ours: frozenset[str], *, listen: bool) -> Http:
    """Bind the admin and health ports that are on. Raises StartError."""
    sockets: Http = {}
    problems = []
    for name, text in (("admin", settings.admin.bind), ("health", settings.health.bind)):
        if not text:
            continue
        host, port = parse_hostport(text, allow_name=False)
        try:
            sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
        except OSError as error:
            problems.append(f"{name}.bind: {text}: {bind_error(error, port)}")
            continue
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((host, port))
            if listen:
                sock.listen(BACKLOG)
            sock.setblocking(False)
        except OSError as error:
            sock.close()
            if listen or error.errno != errno.EADDRINUSE or not conflicts(text, ours):
                problems.append(f"{name}.bind: {text}: {bind_error(error, port)}")
            continue
        sockets[name] = sock
    if problems:
        for sock in sockets.values():
            sock.close()
        raise StartError(problems)
    return sockets
