"""Active checks of the upstream addresses: the supervisor connects to each now and then, and tells who is up.

A check is a TCP connection that is reset as soon as it is established: nothing is sent, and neither side keeps a port
in TIME_WAIT. Each address has a task of its own and its own place in the interval, so that they are not all checked at
once. An address is up until it is proven otherwise.
"""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import Callable, Iterable
from typing import Any

from relay.address import Address, format_hostport
from relay.outcome import DIAL_OUTCOMES, OWN_FAULTS
from relay.supervisor.probe import probe, reason
from relay.supervisor.tasks import keep_running

HURRY = 1.0  # seconds at least between the begin of two checks of one address, where `check_now` asked for the second


class HealthChecker:
    """Watches a set of addresses. All calls come from the event loop.

    `interval` is the seconds between two checks of an address, 0: none, all are up. `rise` successes in a row bring up
    what is down, `fall` failures in a row the other way round; no connection within `timeout` seconds is a failure.
    `changed(address, up)` is called from the event loop upon each change. `log` is the service log. An address that is
    `barred` when its turn comes is not connected to, and its checks say nothing new.
    """

    def __init__(
        self,
        *,
        interval: float,
        rise: int,
        fall: int,
        timeout: float,
        changed: Callable[[Address, bool], None],
        log: Any,
        barred: Callable[[Address], bool] = lambda _address: False,
    ) -> None:
        self._barred = barred
        self._interval = interval
        self._rise = rise
        self._fall = fall
        self._timeout = timeout
        self._changed = changed
        self._log = log
        self._watches: dict[Address, _Watch] = {}
        self._tasks: set[asyncio.Task[None]] = set()  # those of forgotten addresses too, until they have ended
        self._short: set[Address] = set()  # whose last check this machine was too short of something for

    def set_addresses(self, addresses: Iterable[Address]) -> None:
        """The addresses to watch from now on. New ones begin as up; what was known of vanished ones is forgotten."""
        if not self._interval:
            return
        wanted = dict.fromkeys(addresses)
        for address in self._watches.keys() - wanted.keys():
            self._forget(address)
        new = [address for address in wanted if address not in self._watches]
        loop = asyncio.get_running_loop()
        for place, address in enumerate(new):
            due = loop.time() + self._interval * (place + random.random()) / len(new)
            watch = self._watches[address] = _Watch(address, due)
            about = f"check {format_hostport(*address[:2])}"
            work = functools.partial(self._run, watch)
            watch.task = loop.create_task(keep_running(about, work, self._log), name=about)
            self._tasks.add(watch.task)
            watch.task.add_done_callback(self._tasks.discard)

    def up(self, address: Address) -> bool:
        """What the checks say; True for an address that is not watched."""
        watch = self._watches.get(address)
        return watch is None or watch.up

    def check_now(self, address: Address) -> None:
        """Somebody found that dials fail: check at once, or as soon as the last check's begin is HURRY seconds ago."""
        watch = self._watches.get(address)
        if watch is not None:
            watch.hurried.set()

    async def stop(self) -> None:
        """Forget all addresses; returns when every task has ended and every socket is closed."""
        for address in list(self._watches):
            self._forget(address)
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _forget(self, address: Address) -> None:
        watch = self._watches.pop(address)
        self._short.discard(address)
        assert watch.task is not None
        watch.task.cancel()

    async def _run(self, watch: _Watch) -> None:
        while True:
            await watch.turn(self._interval)
            await self._check(watch)

    async def _check(self, watch: _Watch) -> None:
        if self._barred(watch.address):
            return
        try:
            await probe(watch.address, self._timeout)
        except OSError as error:
            if DIAL_OUTCOMES.get(error.errno or 0) in OWN_FAULTS:
                self._ran_short(watch.address, error)
                return
            found, why = False, reason(error) if error.errno else f"no answer in {self._timeout:g} s"
        else:
            found, why = True, ""
        self._short.discard(watch.address)
        if found is watch.up:
            watch.against = 0
            return
        watch.against += 1
        if watch.against < (self._rise if found else self._fall):
            return
        watch.against = 0
        watch.up = found
        text = format_hostport(*watch.address[:2])
        if found:
            self._log.info("upstream up", address=text)
        else:
            self._log.warning("upstream down", address=text, reason=why)
        self._changed(watch.address, found)

    def _ran_short(self, address: Address, error: OSError) -> None:
        """Says nothing of the address. Logged once, until a check of each address that was concerned has worked."""
        if not self._short:
            self._log.warning(
                "upstream not checked", address=format_hostport(*address[:2]), reason=f"this machine: {reason(error)}"
            )
        self._short.add(address)


class _Watch:
    """What is known of one address, and when it is checked next. Times are those of the event loop, in seconds."""

    __slots__ = ("address", "against", "due", "hurried", "started", "task", "up")

    def __init__(self, address: Address, due: float) -> None:
        self.address = address
        self.up = True
        self.against = 0  # checks in a row that found the contrary of `up`
        self.due = due  # the next check of its own accord
        self.started = float("-inf")  # the last check, whatever its reason
        self.hurried = asyncio.Event()
        self.task: asyncio.Task[None] | None = None

    async def turn(self, interval: float) -> None:
        """Wait until it is to be checked. Checks that were asked for or took long do not change its later places."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout_at(self.due):
                await self.hurried.wait()
                await asyncio.sleep(self.started + HURRY - loop.time())
        except TimeoutError:
            late = max(0.0, loop.time() - self.due)  # timers may come a clock tick early
            self.due += interval * (late // interval + 1)
        self.hurried.clear()
        self.started = loop.time()
