"""Active health checks: the supervisor connects to each upstream address at intervals, and reports which are up.

A check is a TCP connection that is reset as soon as it is established: nothing is sent, and neither side keeps a port
in TIME_WAIT. With `Check.tls` it goes on with a TLS handshake. Each address has a task of its own and its own offset in
the interval, so that checks are spread evenly. An address is up until checks have failed.

Upstreams share the checks of an address if they check it in the same way. Else each way is a target of its own: one
address may answer for one name and not for another.
"""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import Callable, Iterable
from typing import NamedTuple

from relay.address import Address, format_hostport
from relay.outcome import DIAL_OUTCOMES, OWN_FAULTS
from relay.supervisor.probe import Tls, probe, reason
from relay.supervisor.service_log import ServiceLog
from relay.supervisor.tasks import keep_running
from relay.supervisor.tls_check import HandshakeError, TrustStore

MIN_INTERVAL = 1.0  # seconds at least from the start of one check of an address to one that `check_now` requests


class Check(NamedTuple):
    """How an address is checked. Times are in seconds."""

    interval: float  # between two checks; 0: none, the address is always up
    rise: int  # successes in a row that bring an address up
    fall: int  # failures in a row that take it down
    timeout: float  # without a connection, or with `tls` a finished handshake, the check has failed
    tls: Tls | None = None


Target = tuple[Address, Check]


class HealthChecker:
    """Checks a set of targets: addresses, each with the way to check it. All calls come from the event loop.

    `changed(target, up)` is called from the event loop after each change. `log` is the service log. While
    `barred(address)` is True, due checks of that address are skipped and its state stays.
    """

    def __init__(
        self,
        *,
        changed: Callable[[Target, bool], None],
        log: ServiceLog,
        barred: Callable[[Address], bool] = lambda _address: False,
    ) -> None:
        self._barred = barred
        self._changed = changed
        self._log = log
        self._trust = TrustStore()
        self._states: dict[Target, _State] = {}
        self._tasks: set[asyncio.Task[None]] = set()  # also those of removed targets, until they have ended
        self._unchecked: set[Target] = set()  # last check impossible for want of a resource of this machine

    def update(self, gone: Iterable[Target], new: Iterable[Target]) -> None:
        """Remove targets, whose state is forgotten, and add others, which start as up unless they are there already."""
        for target in gone:
            self._remove(target)
        new = [target for target in dict.fromkeys(new) if target[1].interval and target not in self._states]
        loop = asyncio.get_running_loop()
        for index, target in enumerate(new):
            address, check = target
            due = loop.time() + check.interval * (index + random.random()) / len(new)
            state = self._states[target] = _State(target, due)
            about = f"check {format_hostport(*address[:2])}"
            work = functools.partial(self._run, state)
            state.task = loop.create_task(keep_running(about, work, self._log), name=about)
            self._tasks.add(state.task)
            state.task.add_done_callback(self._tasks.discard)

    def up(self, target: Target) -> bool:
        """Whether the target is up according to its checks; True for one that is not checked."""
        state = self._states.get(target)
        return state is None or state.up

    def failure(self, target: Target) -> str:
        """Why the target is down, as its last failed check found; empty for one that is up."""
        state = self._states.get(target)
        return "" if state is None or state.up else state.failure

    def expiry(self, target: Target) -> float | None:
        """When the certificate of the last successful handshake expires, in seconds since the epoch; None: none yet."""
        state = self._states.get(target)
        return state.expiry if state is not None else None

    def check_now(self, target: Target) -> None:
        """Dials of the address fail: check it at once, or MIN_INTERVAL seconds after the last check's start."""
        state = self._states.get(target)
        if state is not None:
            state.requested.set()

    async def stop(self) -> None:
        """Remove all targets; returns when every task has ended and every socket is closed."""
        for target in list(self._states):
            self._remove(target)
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _remove(self, target: Target) -> None:
        state = self._states.pop(target, None)
        self._unchecked.discard(target)
        if state is not None and state.task is not None:
            state.task.cancel()

    async def _run(self, state: _State) -> None:
        while True:
            await state.wait(state.target[1].interval)
            await self._check(state)

    async def _check(self, state: _State) -> None:
        address, check = state.target
        if self._barred(address):
            return
        try:
            expiry = await probe(address, check.timeout, check.tls, self._trust)
        except HandshakeError as error:
            found, why = False, str(error)
        except OSError as error:
            if DIAL_OUTCOMES.get(error.errno or 0) in OWN_FAULTS:
                self._local_failure(state.target, error)
                return
            found, why = False, reason(error) if error.errno else f"no answer in {check.timeout:g} s"
        else:
            found, why = True, ""
            if check.tls is not None:
                state.expiry = expiry
        self._unchecked.discard(state.target)
        if not found:
            state.failure = why
        if found is state.up:
            state.contrary = 0
            return
        state.contrary += 1
        if state.contrary < (check.rise if found else check.fall):
            return
        state.contrary = 0
        state.up = found
        about = {"address": format_hostport(*address[:2])}
        if check.tls is not None:
            about["name"] = check.tls.name
        if found:
            self._log.info("upstream up", **about)
        else:
            self._log.warning("upstream down", **about, reason=why)
        self._changed(state.target, found)

    def _local_failure(self, target: Target, error: OSError) -> None:
        """The check failed for want of a resource of this machine, which says nothing about the address.

        Logged once, until every target concerned has been checked again.
        """
        if not self._unchecked:
            address = format_hostport(*target[0][:2])
            self._log.warning("upstream not checked", address=address, reason=f"this machine: {reason(error)}")
        self._unchecked.add(target)


class _State:
    """State and schedule of one target. Times are those of the event loop, in seconds."""

    __slots__ = ("contrary", "due", "expiry", "failure", "requested", "started", "target", "task", "up")

    def __init__(self, target: Target, due: float) -> None:
        self.target = target
        self.up = True
        self.failure = ""  # why the last failed check failed
        self.expiry: float | None = None  # of the certificate, in seconds since the epoch
        self.contrary = 0  # checks in a row whose result was the contrary of `up`
        self.due = due  # when the next regular check starts
        self.started = float("-inf")  # when the last check started, regular or requested
        self.requested = asyncio.Event()
        self.task: asyncio.Task[None] | None = None

    async def wait(self, interval: float) -> None:
        """Wait for the next check. Requested or slow checks do not shift the regular schedule."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout_at(self.due):
                await self.requested.wait()
                await asyncio.sleep(self.started + MIN_INTERVAL - loop.time())
        except TimeoutError:
            late = max(0.0, loop.time() - self.due)  # timers may fire a clock tick early
            self.due += interval * (late // interval + 1)
        self.requested.clear()
        self.started = loop.time()
