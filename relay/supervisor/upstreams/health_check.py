"""Active health checks: the supervisor connects to each upstream address at intervals, and reports which are up.

A check is a TCP connection that is reset as soon as it is established: nothing is sent, and neither side keeps a port
in TIME_WAIT. Each address has a task of its own and its own offset in the interval, so that checks are spread evenly.
An address is up until checks have failed.
"""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import Callable, Iterable

from relay.address import Address, format_hostport
from relay.outcome import DIAL_OUTCOMES, OWN_FAULTS
from relay.supervisor.probe import probe, reason
from relay.supervisor.service_log import ServiceLog
from relay.supervisor.tasks import keep_running

MIN_INTERVAL = 1.0  # seconds at least from the start of one check of an address to one that `check_now` requests


class HealthChecker:
    """Checks a set of addresses. All calls come from the event loop.

    `interval` is the time in seconds between two checks of an address; 0: no checks, all addresses are up. `rise`
    successes in a row bring an address up, `fall` failures in a row take it down; no connection within `timeout`
    seconds is a failure. `changed(address, up)` is called from the event loop after each change. `log` is the service
    log. While `barred(address)` is True, due checks of that address are skipped and its state stays.
    """

    def __init__(
        self,
        *,
        interval: float,
        rise: int,
        fall: int,
        timeout: float,
        changed: Callable[[Address, bool], None],
        log: ServiceLog,
        barred: Callable[[Address], bool] = lambda _address: False,
    ) -> None:
        self._barred = barred
        self._interval = interval
        self._rise = rise
        self._fall = fall
        self._timeout = timeout
        self._changed = changed
        self._log = log
        self._targets: dict[Address, _Target] = {}
        self._tasks: set[asyncio.Task[None]] = set()  # also those of removed addresses, until they have ended
        self._unchecked: set[Address] = set()  # last check impossible for want of a resource of this machine

    def set_addresses(self, addresses: Iterable[Address]) -> None:
        """Replace the set of addresses. New ones start as up; the state of removed ones is forgotten."""
        if not self._interval:
            return
        wanted = dict.fromkeys(addresses)
        for address in self._targets.keys() - wanted.keys():
            self._remove(address)
        new = [address for address in wanted if address not in self._targets]
        loop = asyncio.get_running_loop()
        for index, address in enumerate(new):
            due = loop.time() + self._interval * (index + random.random()) / len(new)
            target = self._targets[address] = _Target(address, due)
            about = f"check {format_hostport(*address[:2])}"
            work = functools.partial(self._run, target)
            target.task = loop.create_task(keep_running(about, work, self._log), name=about)
            self._tasks.add(target.task)
            target.task.add_done_callback(self._tasks.discard)

    def up(self, address: Address) -> bool:
        """Whether the address is up according to its checks; True for an address that is not checked."""
        target = self._targets.get(address)
        return target is None or target.up

    def check_now(self, address: Address) -> None:
        """Dials of the address fail: check it at once, or MIN_INTERVAL seconds after the last check's start."""
        target = self._targets.get(address)
        if target is not None:
            target.requested.set()

    async def stop(self) -> None:
        """Remove all addresses; returns when every task has ended and every socket is closed."""
        for address in list(self._targets):
            self._remove(address)
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _remove(self, address: Address) -> None:
        target = self._targets.pop(address)
        self._unchecked.discard(address)
        assert target.task is not None
        target.task.cancel()

    async def _run(self, target: _Target) -> None:
        while True:
            await target.wait(self._interval)
            await self._check(target)

    async def _check(self, target: _Target) -> None:
        if self._barred(target.address):
            return
        try:
            await probe(target.address, self._timeout)
        except OSError as error:
            if DIAL_OUTCOMES.get(error.errno or 0) in OWN_FAULTS:
                self._local_failure(target.address, error)
                return
            found, why = False, reason(error) if error.errno else f"no answer in {self._timeout:g} s"
        else:
            found, why = True, ""
        self._unchecked.discard(target.address)
        if found is target.up:
            target.contrary = 0
            return
        target.contrary += 1
        if target.contrary < (self._rise if found else self._fall):
            return
        target.contrary = 0
        target.up = found
        text = format_hostport(*target.address[:2])
        if found:
            self._log.info("upstream up", address=text)
        else:
            self._log.warning("upstream down", address=text, reason=why)
        self._changed(target.address, found)

    def _local_failure(self, address: Address, error: OSError) -> None:
        """The check failed for want of a resource of this machine, which says nothing about the address.

        Logged once, until every address concerned has been checked again.
        """
        if not self._unchecked:
            self._log.warning(
                "upstream not checked", address=format_hostport(*address[:2]), reason=f"this machine: {reason(error)}"
            )
        self._unchecked.add(address)


class _Target:
    """State and schedule of one address. Times are those of the event loop, in seconds."""

    __slots__ = ("address", "contrary", "due", "requested", "started", "task", "up")

    def __init__(self, address: Address, due: float) -> None:
        self.address = address
        self.up = True
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
