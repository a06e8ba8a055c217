"""`relay check`: what a start with these settings would do on this machine, and whether the upstreams answer.

Binds nothing and starts nothing, so it can be run beside a relay that serves.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time

from relay.address import format_hostport, parse_hostport
from relay.cpus import usable_cpus
from relay.dial import literal
from relay.engines.choice import choose
from relay.machine import raise_descriptor_limit, source_ports, source_problems
from relay.own_addresses import OWN, Endpoint, is_own, written
from relay.plan import complete_names, nameservers
from relay.prepare import RESERVED_DESCRIPTORS, http_endpoints, is_literal_own, ring_problem
from relay.resolve import Resolver
from relay.settings import Settings
from relay.sources import most_in_use


def run(settings: Settings, *, connect: bool) -> int:
    """Print the plan; with `connect` also try each upstream.

    Returns 0; 1 if an upstream cannot be reached, 2 if the engine cannot run here, or a source
    address is not of this machine.
    """
    workers = settings.workers or usable_cpus()
    descriptors = raise_descriptor_limit()
    carries = (descriptors - RESERVED_DESCRIPTORS - sum(len(item.bind) for item in settings.listeners)) // 2 * workers
    wanted = settings.limits.max_connections
    engine = choose(settings.engine, workers)
    if settings.engine == "ring" and engine.problem:
        print(f"relay: {ring_problem(engine)}", file=sys.stderr)
        return 2
    listening = [*(written(text) for item in settings.listeners for text in item.bind), *http_endpoints(settings)]
    problems = source_problems(settings.dial.source_addresses)
    problems += [
        f"listeners.{item.name}.upstream: {text}: {OWN}"
        for item in settings.listeners
        for text in item.upstream
        if is_literal_own(text, listening)
    ]
    for problem in problems:
        print(f"relay: {problem}", file=sys.stderr)
    if problems:
        return 2
    print("settings: ok")
    print(f"engine: {engine.name}, {workers} worker{'s' if workers != 1 else ''}; {engine.reason}")
    print(f"connections: {min(wanted, carries) if wanted else carries} at most; {descriptors} descriptors a worker")
    if wanted > carries:
        print(f"  warning: limits.max_connections is {wanted}, more than the descriptors carry; raise LimitNOFILE")
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
        ports = most_in_use(source_ports())
        print(f"dialled from: {', '.join(dial.source_addresses)}; {ports} connections from each to each address")
    for item in settings.listeners:
        names = f", TLS for {', '.join(item.sni)} only" if item.sni else ""
        if item.proxy_protocol != "off":
            names += f", PROXY protocol from clients: {item.proxy_protocol}"
        if item.send_proxy_protocol != "off":
            names += f", PROXY protocol {item.send_proxy_protocol} to the upstream"
        print(f"listener {item.name}: {', '.join(item.bind)} -> {', '.join(item.upstream)}{names}")
    if not connect:
        return 0
    upstreams = dict.fromkeys(upstream for item in settings.listeners for upstream in item.upstream)
    results = asyncio.run(_connect_all(settings, list(upstreams), listening))
    return 0 if all(results) else 1


async def _connect_all(settings: Settings, upstreams: list[str], listening: list[Endpoint]) -> list[bool]:
    resolver = Resolver(nameservers(settings), complete=complete_names(settings))
    return [await _connect(resolver, text, settings.dial.connect_timeout, listening) for text in upstreams]


async def _connect(resolver: Resolver, text: str, timeout: float, listening: list[Endpoint]) -> bool:
    """Resolve and dial one upstream, every address; well if one of them answers."""
    host, port = parse_hostport(text, allow_name=True)
    if literal(host, port) is not None:
        addresses: tuple[str, ...] = (host,)
    else:
        found = await resolver.resolve(host)
        for refused, why in found.refused:
            print(f"upstream {text}: {format_hostport(refused, port)}: never an upstream: {why}")
        if not found.addresses:
            print(f"upstream {text}: cannot be resolved: {found.error}")
            return False
        addresses = found.addresses
    reached = False
    for address in addresses:
        if is_own(address, port, listening):
            print(f"upstream {text}: {format_hostport(address, port)}: never an upstream: {OWN}")
            continue
        started = time.monotonic()
        try:
            await _dial(address, port, timeout)
        except TimeoutError:
            answer = f"no answer in {timeout:g} s (dial.connect_timeout)"
        except OSError as error:
            answer = _reason(error)
        else:
            answer = f"connected in {time.monotonic() - started:.4f} s"
            reached = True
        print(f"upstream {text}: {format_hostport(address, port)}: {answer}")
    return reached


async def _dial(address: str, port: int, timeout: float) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as sock:
        async with asyncio.timeout(timeout):
            await asyncio.get_running_loop().sock_connect(sock, (address, port))


def _reason(error: OSError) -> str:
    # By its number: asyncio's own text is "Connect call failed" and the address, which says nothing of the cause.
    return (os.strerror(error.errno) if error.errno else str(error)).lower()
