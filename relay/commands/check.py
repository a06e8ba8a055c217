"""`relay check`: whether a start with these settings would succeed on this machine, and whether the upstreams answer.

It prepares a start as `relay run` does (`preflight`) but listens nowhere, so it can be run beside a relay that serves.
The addresses of that relay count as free.
"""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence

from relay.address import Address, format_hostport, literal, parse_hostport
from relay.commands.running import Running, find, inspect, reload_problems
from relay.commands.verdicts import leads_to, verdicts
from relay.own_addresses import OWN as OWN_ADDRESS
from relay.own_addresses import Endpoint, is_own, written
from relay.settings.inherited import upstream_checks
from relay.settings.model import Settings
from relay.supervisor.host import IN_USE
from relay.supervisor.instance import Instance, StartError, complete_names, nameservers
from relay.supervisor.preflight import trial
from relay.supervisor.prepare import http_endpoints
from relay.supervisor.probe import Tls, probe, reason
from relay.supervisor.systemd.notify import Notifier
from relay.supervisor.systemd.socket_activation import listen_fds
from relay.supervisor.tls_check import HandshakeError, TrustStore
from relay.supervisor.upstreams.resolver import Resolver

DAY = 86_400  # seconds
Dial = Callable[[Address], Awaitable[tuple[bool, str]]]


def run(
    load: Callable[[Mapping[str, str]], Settings],
    *,
    connect: bool,
    pid: int | None = None,
    client: str | None = None,
    sni: str | None = None,
) -> int:
    """Print what a start would do, and the warnings; with `connect`, also dial each upstream.

    With `client` or `sni`, print only what becomes of a client from that address, or of a TLS client that asks for that
    name ("": for none), and start nothing.
    With `pid`, the process number of a running relay, a reload of that relay must put the same settings into effect.
    Returns 0, or 1 with a line for each reason: this machine lacks what a start needs, a reload would not apply the
    settings, an upstream cannot be reached. `load` reads the settings with the variables that it is given, and raises
    SettingsError.
    """
    environ = dict(os.environ)
    settings = load(environ)
    if client is not None or sni is not None:
        for line in verdicts(settings, client, sni):
            print(line)
        return 0
    problems: list[str] = []
    running: Running | None
    if pid is None:
        running = find(settings)
    else:
        try:
            running = inspect(pid, settings)
        except ProcessLookupError:
            return _complain([f"--running {pid}: there is no such process"])
        problems += reload_problems(running, settings, environ, load)
    instance: Instance | None = None
    # From a copy of the variables: both remove those that they read.
    notifier, taken = Notifier(environ), listen_fds(environ)
    try:
        instance = trial(
            settings, taken, notifier.watchdog_seconds, running.addresses if running is not None else frozenset()
        )
    except StartError as error:
        problems += error.problems
    for line in _unknown(settings, running, problems):
        print(f"warning: {line}")
    if instance is not None and not problems:
        _show(settings, instance)
        for note in instance.notes:
            print(f"warning: {note}")
    # Also after problems: without the right to bind port 443, whether the hub answers is still worth knowing.
    reached = not connect or _reached(settings, problems)
    return _complain(problems) if problems else 0 if reached else 1


def _reached(settings: Settings, problems: list[str]) -> bool:
    """Dial every upstream and print a line per address; True if each upstream answers at one address at least.

    If no upstream could be dialled at all, `problems` gets the reason.
    """
    upstreams = dict.fromkeys(upstream for item in settings.listeners for upstream in item.destinations)
    listening = [*(written(text) for item in settings.listeners for text in item.bind), *http_endpoints(settings)]
    try:
        return all(asyncio.run(_connect_all(settings, list(upstreams), listening)))
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    except OSError as error:  # no descriptor left for the loop itself
        problems.append(f"--connect: {reason(error)}")
        return False


def _unknown(settings: Settings, running: Running | None, problems: Sequence[str]) -> Sequence[str]:
    """What could not be found out about a running relay, if it matters; a line each."""
    if running is not None:
        return running.unknown
    if not any(IN_USE in problem for problem in problems):
        return ()
    return [
        f"no relay answers at admin.bind ({settings.admin.bind or 'off'}): if a port in use belongs to the relay that "
        "you want to reload, name its process with --running PID"
    ]


def _complain(problems: Sequence[str]) -> int:
    for problem in problems:
        print(f"relay: {problem}", file=sys.stderr)
    return 1


def _show(settings: Settings, instance: Instance) -> None:
    workers = instance.workers
    print("settings: ok")
    print(f"engine: {instance.engine}, {workers} worker{'s' if workers != 1 else ''}; {instance.engine_reason}")
    print(f"connections: {instance.limits.instance} at most; {instance.descriptors} descriptors a worker")
    allow, deny = len(settings.access.allow), len(settings.access.deny)
    if allow or deny:
        print(f"access: networks allowed: {allow or 'all'}, denied: {deny or 'none'}")
    limits, dial = settings.limits, settings.dial
    if limits.connect_rate_per_source:
        print(f"rate per source: {limits.connect_rate_per_source:g}/s, {limits.connect_burst_per_source} at once")
    if limits.accept_rate:
        print(f"rate of the instance: {limits.accept_rate:g}/s")
    if dial.rate:
        print(f"dials: {dial.rate:g}/s, {dial.queue} may wait for {dial.queue_timeout:g} s")
    if dial.source_addresses:
        ports = instance.source_ports
        print(f"dialled from: {', '.join(dial.source_addresses)}; {ports} connections from each to each address")
    for item in settings.listeners:
        names = ""
        if item.sni or not item.upstream:
            further = ", ".join([*item.sni, *(["the names of its routes"] if item.routes else [])])
            names = f", TLS for {further} only"
        if item.proxy_protocol != "off":
            names += f", PROXY protocol from clients: {item.proxy_protocol}"
        if item.send_proxy_protocol != "off":
            names += f", PROXY protocol {item.send_proxy_protocol} to the upstream"
        print(f"listener {item.name}: {', '.join(item.bind)} -> {', '.join(item.upstream) or 'routes'}{names}")
        for route in item.routes:
            print(f"route {item.name}.{route.name}: {', '.join(route.sni)} -> {leads_to(route)}")


async def _connect_all(settings: Settings, upstreams: list[str], listening: list[Endpoint]) -> list[bool]:
    task = asyncio.current_task()
    assert task is not None
    # asyncio.run's own handler may run too late: a signal that arrives just before the loop waits is handled after
    # the next event, which for a dial may be a minute later. The loop's handlers wake it through a socket. Where
    # the parent ignores the signal, as a shell does for what it runs in the background, it stays ignored.
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, task.cancel)
    resolver = Resolver(nameservers(settings), complete=complete_names(settings))
    needed = {text for item in settings.listeners for text in item.upstream}
    needed.update(text for x in settings.listeners for r in x.routes if not r.optional for text in r.destinations)
    checks, trust = upstream_checks(settings.health_check, settings.listeners), TrustStore()

    async def connect(text: str) -> bool:
        host, port = parse_hostport(text, allow_name=True)
        check = checks[format_hostport(host, port)]
        tls = Tls(host, check.send_proxy) if check.settings.tls else None
        dial = functools.partial(_dial, timeout=settings.dial.connect_timeout, tls=tls, trust=trust)
        return await _connect(resolver, text, dial, listening, optional=text not in needed)

    return [await connect(text) for text in upstreams]


async def _connect(resolver: Resolver, text: str, dial: Dial, listening: list[Endpoint], *, optional: bool) -> bool:
    """Resolve one upstream and dial every address of it; True if one of them answers.

    True as well if the name does not resolve, and the upstream is that of an optional route only.
    """
    host, port = parse_hostport(text, allow_name=True)
    if literal(host, port) is not None:
        addresses: tuple[str, ...] = (host,)
    else:
        found = await resolver.resolve(host)
        for refused, why in found.refused:
            print(f"upstream {text}: {format_hostport(refused, port)}: never an upstream: {why}")
        if not found.addresses:
            off = ", and its route is optional: it would be off" if optional else ""
            print(f"upstream {text}: cannot be resolved: {found.error}{off}")
            return optional
        addresses = found.addresses
    reached = False
    for address in addresses:
        if is_own(address, port, listening):
            print(f"upstream {text}: {format_hostport(address, port)}: never an upstream: {OWN_ADDRESS}")
            continue
        destination = literal(address, port)
        assert destination is not None
        answers, answer = await dial(destination)
        reached = reached or answers
        print(f"upstream {text}: {format_hostport(address, port)}: {answer}")
    return reached


async def _dial(address: Address, *, timeout: float, tls: Tls | None, trust: TrustStore) -> tuple[bool, str]:
    """Whether an address answers, and what to say of it; with `tls`, a health check's handshake is part of that."""
    started = time.monotonic()
    try:
        expiry = await probe(address, timeout, tls, trust)
    except TimeoutError:
        return False, f"no answer in {timeout:g} s (dial.connect_timeout)"
    except HandshakeError as error:
        return False, str(error)
    except OSError as error:
        return False, reason(error)
    answer = f"connected in {time.monotonic() - started:.4f} s"
    if tls is not None:
        left = (expiry - time.time()) / DAY
        answer += f", certificate of {tls.name} verified, which expires in {left:.0f} days"
    return True, answer
