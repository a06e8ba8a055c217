"""The name cache of the whole instance: refreshes answers ahead of time, and serves stale ones while DNS fails.

Each name has one task, which keeps its answer fresh, so that no connection waits for a query. A single look-up is in
`resolver`; `monitor` passes the addresses on to the workers.

This is serve-stale, RFC 8767. For each name the cache serves, in this order:

  1. The last good answer while look-ups succeed. The end of its TTL does not remove it; only a new answer replaces it.
  2. The same answer for `hold` seconds after the end of its TTL while look-ups fail.
  3. The failure.

Unlike RFC 8767 (section 4), NXDOMAIN and an empty answer count as failures: a zone that is being rebuilt gives them for
a while. So does an answer that has only addresses that are never an upstream; and, while a stale answer can be served,
an answer for a later candidate of the search list that was reached only because the candidate served now fails.
"""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple

from relay.core.backoff import delay
from relay.supervisor.service_log import ServiceLog
from relay.supervisor.tasks import keep_running
from relay.supervisor.upstreams.resolver import Lookup, Resolver

MIN_INTERVAL = 1.0  # seconds at least between the starts of two look-ups of one name, refreshes included
REFRESH = 0.8  # share of the TTL after which an answer is refreshed
REFRESH_JITTER = 0.1  # share of the TTL by which a refresh is earlier at most, so that names do not synchronise
RETRY_FIRST, RETRY_MOST = 1.0, 30.0  # exponential backoff after failures, in seconds
RETRY_JITTER = 0.2  # share of the backoff by which a retry is earlier at most


class Answer(NamedTuple):
    """A name's literal addresses, IPv4 first; or no address and the reason, if the name cannot be resolved."""

    addresses: tuple[str, ...]
    error: str = ""


class NameCache:
    """Keeps the answers of `names`. All calls come from the event loop.

    TTLs are clamped to `min_ttl`..`max_ttl` seconds. `hold` is how long, in seconds after the end of its TTL, a stale
    answer is served while look-ups fail. `clock` is the event loop's clock, in monotonic seconds.
    `changed(name, answer)` is called from the event loop, in order, when the set of addresses served changes or becomes
    empty or non-empty; another order (round robin) or another reason is no change. `log` is the service log. Answers of
    names that are in `before`, the cache of an earlier configuration, are taken over. Names of `optional` need not
    resolve: until one of them does, its failures are logged at level debug.
    """

    def __init__(
        self,
        resolver: Resolver,
        names: Iterable[str],
        *,
        min_ttl: float,
        max_ttl: float,
        hold: float,
        clock: Callable[[], float],
        changed: Callable[[str, Answer], None],
        log: ServiceLog,
        before: NameCache | None = None,
        optional: Collection[str] = (),
    ) -> None:
        self._optional = frozenset(optional)
        self._resolver = resolver
        self._min_ttl = min_ttl
        self._max_ttl = max_ttl
        self._hold = hold
        self._clock = clock
        self._changed = changed
        self._log = log
        earlier: dict[str, _Entry] = {}
        if before is not None:
            # A name that is complete now must not keep an answer that it had by the search list.
            earlier = {
                name: entry
                for name, entry in before._names.items()
                if name not in resolver.complete or entry.source in ("", name)
            }
        now = clock()
        self._names: dict[str, _Entry] = {name: _Entry(name, now, earlier.get(name)) for name in names}

    async def run(self) -> None:
        """Look up every name at once and keep the answers fresh, until cancelled; then all of its tasks have ended."""
        try:
            async with asyncio.TaskGroup() as tasks:
                for entry in self._names.values():
                    about = f"resolve {entry.name}"
                    watch = functools.partial(self._keep_fresh, entry)
                    tasks.create_task(keep_running(about, watch, self._log), name=about)
                await asyncio.Event().wait()  # also without names: the caller takes a return as the end of the work
        finally:
            for entry in self._names.values():
                entry.cancel_timer()

    def answer(self, name: str) -> Answer | None:
        """The answer served now: the last one passed to `changed`, but with the latest reason.

        None before the first result, and for a name that is not in the cache.
        """
        entry = self._names.get(name)
        return entry.served if entry is not None else None

    def refused(self, name: str) -> tuple[tuple[str, str], ...]:
        """Addresses in the name's last answer that are never dialled, each with the reason."""
        entry = self._names.get(name)
        return entry.refused if entry is not None else ()

    def ages(self) -> dict[str, float]:
        """Seconds since each name's last good answer; for a name without any, since the cache was made.

        While look-ups succeed the age stays below `max_ttl` plus the time of a look-up.
        """
        now = self._clock()
        return {name: now - entry.good_at for name, entry in self._names.items()}

    def age(self, name: str) -> float | None:
        """Seconds since the name's last good answer; None if it has had none."""
        entry = self._names[name]
        return self._clock() - entry.good_at if entry.good else None

    def refresh(self, name: str) -> None:
        """Every address of the name fails: look it up now, or MIN_INTERVAL seconds after the last look-up's start.

        A look-up under way may have been answered before the addresses failed, so another one follows it. Several calls
        before the next look-up cause one.
        """
        entry = self._names.get(name)
        if entry is not None:
            entry.refresh.set()

    async def _keep_fresh(self, entry: _Entry) -> None:
        while True:
            entry.refresh.clear()
            entry.started = self._clock()
            lookup = self._screened(entry, await self._look_up(entry.name))
            due = self._succeeded(entry, lookup) if lookup.addresses else self._failed(entry, lookup.error)
            await self._wait_until(entry, max(due, entry.started + MIN_INTERVAL))

    async def _wait_until(self, entry: _Entry, due: float) -> None:
        """Wait until `due`, or until a requested refresh may start."""
        try:
            async with asyncio.timeout(due - self._clock()):
                await entry.refresh.wait()
                await asyncio.sleep(entry.started + MIN_INTERVAL - self._clock())
        except TimeoutError:
            pass

    async def _look_up(self, name: str) -> Lookup:
        try:
            return await self._resolver.resolve(name)
        except Exception as error:  # noqa: BLE001 -- a defect must not end the name's task; it is logged as one
            self._log.error("resolver failed", name=name, exc_info=True)
            return Lookup((), str(error) or type(error).__name__)

    def _screened(self, entry: _Entry, lookup: Lookup) -> Lookup:
        """The look-up, or a failure in its place while the served answer's candidate fails and can be served stale.

        Also logs addresses that are newly refused.
        """
        if lookup.addresses or lookup.refused:
            for address, why in lookup.refused:
                if (address, why) not in entry.refused:
                    self._log.warning("address refused", name=entry.name, address=address, reason=why)
            entry.refused = lookup.refused
        if lookup.addresses and entry.source in lookup.failed and self._stale_seconds(entry) > 0:
            return Lookup((), f"{entry.source} fails, and {lookup.source} does not take its place")
        return lookup

    def _succeeded(self, entry: _Entry, lookup: Lookup) -> float:
        """Store and serve a good answer. Returns when to look up again."""
        now = self._clock()
        ttl = min(max(lookup.ttl, self._min_ttl), self._max_ttl)
        old, new = entry.good, self._with_stale_family(entry, lookup, now)
        if not lookup.unanswered:
            entry.complete_until = now + ttl
        missed = entry.failures or (entry.served is not None and entry.served.error)
        if missed and (entry.good or entry.name not in self._optional):
            self._log.warning("resolves again", name=entry.name, addresses=list(new))
        if old and set(old) != set(new):
            self._log.info("addresses changed", name=entry.name, old=list(old), new=list(new))
        entry.cancel_timer()
        entry.failures = 0
        entry.good, entry.good_at, entry.expires = new, now, now + ttl
        entry.source = lookup.source
        self._serve(entry, Answer(new))
        soon = self._min_ttl if lookup.unanswered else ttl
        return now + soon * (REFRESH - REFRESH_JITTER * random.random())

    def _with_stale_family(self, entry: _Entry, lookup: Lookup, now: float) -> tuple[str, ...]:
        """The addresses found, and the stale ones of a family whose question got no answer, for `hold` seconds."""
        other = lookup.source != entry.source  # another candidate: families of two candidates are not mixed
        if not lookup.unanswered or other or now >= entry.complete_until + self._hold:
            return lookup.addresses
        held = [address for address in entry.good if (":" in address) == (lookup.unanswered == "AAAA")]
        return tuple(sorted((*lookup.addresses, *held), key=lambda address: ":" in address))

    def _failed(self, entry: _Entry, error: str) -> float:
        """Record a failed look-up. Returns when to try again."""
        entry.failures += 1
        entry.error = error
        if entry.failures == 1:
            left = self._stale_seconds(entry)
            if left > 0:
                text = f"cannot resolve; serving the last good answer for {left:.0f} s more"
                self._log.warning(text, name=entry.name, error=error, addresses=list(entry.good))
            self._serve_stale_or_fail(entry)
        elif entry.served is not None and entry.served.error:
            entry.served = Answer((), error)
        return self._clock() + delay(entry.failures, RETRY_FIRST, RETRY_MOST) * (1 - RETRY_JITTER * random.random())

    def _stale_seconds(self, entry: _Entry) -> float:
        return entry.expires + self._hold - self._clock() if entry.good else 0.0

    def _serve_stale_or_fail(self, entry: _Entry) -> None:
        """Serve the stale answer while `hold` allows it (a timer calls this again at its end), then the failure."""
        left = self._stale_seconds(entry)
        if left > 0:
            entry.timer = asyncio.get_running_loop().call_later(left, self._serve_stale_or_fail, entry)
            return
        entry.timer = None
        if entry.served is None or not entry.served.error:
            log = self._log.debug if entry.name in self._optional and not entry.good else self._log.warning
            log("cannot resolve", name=entry.name, error=entry.error)
        self._serve(entry, Answer((), entry.error))

    def _serve(self, entry: _Entry, answer: Answer) -> None:
        before = entry.served
        if before is not None and not answer.error and set(before.addresses) == set(answer.addresses):
            return  # keep the order passed to `changed`
        entry.served = answer
        if before is None or not before.error or not answer.error:
            # Called from the loop and not from here: an exception in it must not end this name's task.
            asyncio.get_running_loop().call_soon(self._changed, entry.name, answer)


class _Entry:
    """The cache entry of one name. Times are in monotonic seconds."""

    __slots__ = (
        "complete_until", "error", "expires", "failures", "good", "good_at", "name", "refresh", "refused", "served",
        "source", "started", "timer",
    )  # fmt: skip

    def __init__(self, name: str, now: float, earlier: _Entry | None) -> None:
        self.name = name
        self.served: Answer | None = None
        self.good: tuple[str, ...] = ()  # addresses of the last good answer
        self.good_at = now  # when the last good answer came
        self.expires = now  # end of the last good answer's TTL
        self.complete_until = now  # end of the TTL of the last answer with both families, A and AAAA
        self.source = ""  # absolute name that gave the last good answer; "": the hosts file, or no answer yet
        self.refused: tuple[tuple[str, str], ...] = ()  # addresses of the last answer that are never dialled, and why
        if earlier is not None:
            self.served, self.good, self.good_at = earlier.served, earlier.good, earlier.good_at
            self.expires, self.complete_until = earlier.expires, earlier.complete_until
            self.source, self.refused = earlier.source, earlier.refused
        self.failures = 0  # failed look-ups in a row
        self.error = ""  # of the last failed look-up
        self.started = float("-inf")  # when the last look-up started
        self.refresh = asyncio.Event()  # a refresh was requested since the last look-up started
        self.timer: asyncio.TimerHandle | None = None  # end of serving stale, while look-ups fail

    def cancel_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
