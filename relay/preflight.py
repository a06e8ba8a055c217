"""What a start takes from this machine, found or refused as a whole: one way for `relay run` and `relay check`.

`run` goes on with what it gets. `check` makes a trial: sockets are bound and do not listen, so that no client comes to
them, and what a relay that runs already has counts as free.
"""

from __future__ import annotations

import errno
import os
import socket

from relay.address import parse_hostport
from relay.binding import meets
from relay.cpus import usable_cpus
from relay.machine import bind_error
from relay.plan import Binding, Plan, StartError, tcp_options
from relay.prepare import prepare, watchdog_notes
from relay.running import Running
from relay.settings.model import Settings
from relay.systemd.listening import Listening, bindings, match

BACKLOG = 128  # of the admin and the health port
Http = dict[str, socket.socket]  # "admin", "health": those that are on


def preflight(settings: Settings, taken: Listening, watchdog: float) -> tuple[Plan, Http]:
    """The plan of a start with its listening sockets, and those of the admin and health ports.

    `taken`: the service manager's sockets; `watchdog`: seconds that it bears with silence, 0: for ever. Raises
    StartError with all that is in the way.
    """
    return _preflight(settings, taken, watchdog, {}, frozenset(), listen=True)


def trial(settings: Settings, taken: Listening, watchdog: float, running: Running | None) -> Plan:
    """The plan that a start would have, all of whose sockets are closed again. Raises StartError, as `preflight` does.

    `running`: a relay beside which this is tried; its addresses and ports are no obstacle.
    """
    held = running.addresses if running is not None else frozenset()
    kept = {address: Binding(address, address, []) for address in held}
    plan, http = _preflight(settings, taken, watchdog, kept, held, listen=False)
    plan.close_sockets()
    for sock in http.values():
        sock.close()
    return plan


def _preflight(
    settings: Settings,
    taken: Listening,
    watchdog: float,
    kept: dict[str, Binding],
    ours: frozenset[str],
    *,
    listen: bool,
) -> tuple[Plan, Http]:
    problems: list[str] = []
    http: Http = {}
    plan: Plan | None = None
    try:
        plan = _inherit(settings, taken, kept, ours, listen=listen)
    except StartError as error:
        problems += error.problems
    try:
        http = _bind_http(settings, ours, listen=listen)
    except StartError as error:
        problems += error.problems
    if problems or plan is None:
        if plan is not None:
            plan.close_sockets()
        for sock in http.values():
            sock.close()
        raise StartError(problems)
    plan.watchdog = watchdog
    plan.notes += watchdog_notes(settings, watchdog)
    return plan, http


def _inherit(
    settings: Settings, taken: Listening, kept: dict[str, Binding], ours: frozenset[str], *, listen: bool
) -> Plan:
    """The plan, with the service manager's sockets where it has handed over any. Raises StartError."""
    matched = match(taken.sockets, [(item.name, item.bind) for item in settings.listeners])
    if problems := taken.problems + matched.problems:
        raise StartError(problems)
    try:
        inherited = bindings(matched.served, settings.workers or usable_cpus(), tcp_options(settings))
    except OSError as error:
        raise StartError([f"systemd's sockets: {os.strerror(error.errno or 0).lower()}"]) from None
    plan = prepare(settings, {**kept, **inherited}, ours=ours, listen=listen)
    plan.notes += matched.notes
    return plan


def _bind_http(settings: Settings, ours: frozenset[str], *, listen: bool) -> Http:
    """The admin and the health port's sockets, those that are on. Raises StartError."""
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
            if listen or error.errno != errno.EADDRINUSE or not meets(text, ours):
                problems.append(f"{name}.bind: {text}: {bind_error(error, port)}")
            continue
        sockets[name] = sock
    if problems:
        for sock in sockets.values():
            sock.close()
        raise StartError(problems)
    return sockets
