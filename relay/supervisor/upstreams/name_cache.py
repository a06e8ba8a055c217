"""Names to addresses for the whole instance: looked up ahead of time, and the last good answer held while DNS fails.

Each name has one task, which keeps its answer fresh, so that no connection waits for a query. A single look-up is
`relay.resolve`'s affair; what is done with the addresses is that of whoever is told of them.

What is served of a name is, in this order: the last good answer as long as look-ups succeed, its TTL notwithstanding
(it is replaced, never dropped); that same answer for `hold` seconds from the end of its TTL if look-ups fail; then the
failure. A name that does not exist, or has no addresses, is a failure like any other: a zone that is being rebuilt
says so for a while. So is an answer with nothing but addresses that are never an upstream, and, where the answer that
is served came from one name of the search list, an answer from a later one because that one fails now.
"""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from relay.core.backoff import delay
from relay.supervisor.tasks import keep_running
from relay.supervisor.upstreams.resolver import Lookup, Resolver

HURRY = 1.0  # seconds at least between the begin of two look-ups of one name, whatever asks for them
REFRESH = 0.8  # of its TTL, after which an answer is asked for again
REFRESH_JITTER = 0.1  # of its TTL, by how much earlier at most, lest many names march in step
RETRY_FIRST, RETRY_MOST = 1.0, 30.0  # seconds from a failure to the next look-up, doubled by each
RETRY_JITTER = 0.2  # of those seconds, by how much earlier at most


class Answer(NamedTuple):
    """What a name stands for: literal addresses, IPv4 first; none, and the reason, if it cannot be resolved."""

    addresses: tuple[str, ...]
    error: str = ""


class NameCache:
    """Keeps the answers of `names`. All calls come from the event loop.

    A TTL counts as no less than `min_ttl` and no more than `max_ttl` seconds. `hold` is for how many seconds after the
    end of its TTL an answer is served while look-ups fail. `clock` is in monotonic seconds, the same as the event
    loop's. `changed(name, answer)` is called from the event loop, in order, when the set of addresses served changes,
    or begins or ceases to be none; another order (round robin) or another reason is no change. `log` is the service
    log. From `before`, the service of an earlier configuration, answers of names that are still wanted are taken over.
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
        log: Any,
        before: NameCache | None = None,
    ) -> None:
        self._resolver = resolver
        self._min_ttl = min_ttl
        self._max_ttl = max_ttl
        self._hold = hold
        self._clock = clock
        self._changed = changed
        self._log = log
        earlier: dict[str, _Name] = {}
        if before is not None:
            # Not what the search list gave for a name that is complete by now.
            earlier = {
                name: one
                for name, one in before._names.items()
                if name not in resolver.complete or one.source in ("", name)
            }
        now = clock()
        self._names: dict[str, _Name] = {name: _Name(name, now, earlier.get(name)) for name in names}

    async def run(self) -> None:
        """Look up at once, and keep the answers fresh until this is cancelled. At its end all of its tasks are over."""
        try:
            async with asyncio.TaskGroup() as tasks:
                for entry in self._names.values():
                    about = f"resolve {entry.name}"
                    watch = functools.partial(self._watch, entry)
                    tasks.create_task(keep_running(about, watch, self._log), name=about)
                await asyncio.Event().wait()  # also without a name: an end would look like a failure
        finally:
            for entry in self._names.values():
                entry.cancel_timer()

    def answer(self, name: str) -> Answer | None:
        """What is served now: what `changed` was told last, but with the latest reason. None before the first result,
        and for a name that is not this service's.
        """
        entry = self._names.get(name)
        return entry.served if entry is not None else None

    def refused(self, name: str) -> tuple[tuple[str, str], ...]:
        """Addresses of the name's last answer that are never dialled, each with the reason."""
        entry = self._names.get(name)
        return entry.refused if entry is not None else ()

    def ages(self) -> dict[str, float]:
        """Seconds since each name's last good answer came; since this service was made for one that never had any.

        While all is well that is at most `max_ttl` and the time of a look-up; beyond, look-ups fail.
        """
        now = self._clock()
        return {name: now - entry.good_at for name, entry in self._names.items()}

    def age(self, name: str) -> float | None:
        """Seconds since the name's last good answer came; None if there never was one."""
        entry = self._names[name]
        return self._clock() - entry.good_at if entry.good else None

    def refresh(self, name: str) -> None:
        """Somebody found that every address fails: look up now, or HURRY seconds after the last look-up's begin.

        A look-up under way may have been answered before that was so: another one follows it. Calls are not counted.
        """
        entry = self._names.get(name)
        if entry is not None:
            entry.wanted.set()

    async def _watch(self, entry: _Name) -> None:
        while True:
            entry.wanted.clear()
            entry.started = self._clock()
            lookup = self._judged(entry, await self._look_up(entry.name))
            due = self._succeeded(entry, lookup) if lookup.addresses else self._failed(entry, lookup.error)
            await self._turn(entry, max(due, entry.started + HURRY))

    async def _turn(self, entry: _Name, due: float) -> None:
        """Wait until `due`, or until a refresh that is asked for may begin."""
        try:
            async with asyncio.timeout(due - self._clock()):
                await entry.wanted.wait()
                await asyncio.sleep(entry.started + HURRY - self._clock())
        except TimeoutError:
            pass

    async def _look_up(self, name: str) -> Lookup:
        try:
            return await self._resolver.resolve(name)
        except Exception as error:  # noqa: BLE001 -- a defect must not end the name's task; it is logged as one
            self._log.error("resolver failed", name=name, exc_info=True)
            return Lookup((), str(error) or type(error).__name__)

    def _judged(self, entry: _Name, lookup: Lookup) -> Lookup:
        """The look-up, or a failure in its place if it answers for a name that fails, and whose answer is held."""
        if lookup.addresses or lookup.refused:
            for address, why in lookup.refused:
                if (address, why) not in entry.refused:
                    self._log.warning("address refused", name=entry.name, address=address, reason=why)
            entry.refused = lookup.refused
        if lookup.addresses and entry.source in lookup.failed and self._hold_left(entry) > 0:
            return Lookup((), f"{entry.source} fails, and {lookup.source} does not take its place")
        return lookup

    def _succeeded(self, entry: _Name, lookup: Lookup) -> float:
        """A good answer has come. Returns when to ask again."""
        now = self._clock()
        ttl = min(max(lookup.ttl, self._min_ttl), self._max_ttl)
        old, new = entry.good, self._completed(entry, lookup, now)
        if not lookup.unanswered:
            entry.complete_until = now + ttl
        if entry.failures or (entry.served is not None and entry.served.error):
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

    def _completed(self, entry: _Name, lookup: Lookup, now: float) -> tuple[str, ...]:
        """The addresses found; those of a family that was asked for in vain are held like a whole answer would be."""
        other = lookup.source != entry.source  # another name of the search list, whose families are its own
        if not lookup.unanswered or other or now >= entry.complete_until + self._hold:
            return lookup.addresses
        held = [address for address in entry.good if (":" in address) == (lookup.unanswered == "AAAA")]
        return tuple(sorted((*lookup.addresses, *held), key=lambda address: ":" in address))

    def _failed(self, entry: _Name, error: str) -> float:
        """A look-up has failed. Returns when to try again."""
        entry.failures += 1
        entry.error = error
        if entry.failures == 1:
            left = self._hold_left(entry)
            if left > 0:
                text = f"cannot resolve; serving the last good answer for {left:.0f} s more"
                self._log.warning(text, name=entry.name, error=error, addresses=list(entry.good))
            self._hold_or_give_up(entry)
        elif entry.served is not None and entry.served.error:
            entry.served = Answer((), error)
        return self._clock() + delay(entry.failures, RETRY_FIRST, RETRY_MOST) * (1 - RETRY_JITTER * random.random())

    def _hold_left(self, entry: _Name) -> float:
        return entry.expires + self._hold - self._clock() if entry.good else 0.0

    def _hold_or_give_up(self, entry: _Name) -> None:
        """Look-ups fail: serve the last good answer until its time is over, then the failure."""
        left = self._hold_left(entry)
        if left > 0:
            entry.timer = asyncio.get_running_loop().call_later(left, self._hold_or_give_up, entry)
            return
        entry.timer = None
        if entry.served is None or not entry.served.error:
            self._log.warning("cannot resolve", name=entry.name, error=entry.error)
        self._serve(entry, Answer((), entry.error))

    def _serve(self, entry: _Name, answer: Answer) -> None:
        before = entry.served
        if before is not None and not answer.error and set(before.addresses) == set(answer.addresses):
            return  # in the order that was told of
        entry.served = answer
        if before is None or not before.error or not answer.error:
            # Not called from here: a fault in what it does is no end of this name's task.
            asyncio.get_running_loop().call_soon(self._changed, entry.name, answer)


class _Name:
    """What is known of one name. Times are in monotonic seconds."""

    __slots__ = (
        "complete_until", "error", "expires", "failures", "good", "good_at", "name", "refused", "served", "source",
        "started", "timer", "wanted",
    )  # fmt: skip

    def __init__(self, name: str, now: float, earlier: _Name | None) -> None:
        self.name = name
        self.served: Answer | None = None
        self.good: tuple[str, ...] = ()  # the last good answer's addresses
        self.good_at = now  # when that came
        self.expires = now  # the end of its TTL
        self.complete_until = now  # the end of the TTL of the last answer to both questions, A and AAAA
        self.source = ""  # the absolute name that the last good answer came from; "": the hosts file, or none yet
        self.refused: tuple[tuple[str, str], ...] = ()  # what the last answer had that is never dialled, and why
        if earlier is not None:
            self.served, self.good, self.good_at = earlier.served, earlier.good, earlier.good_at
            self.expires, self.complete_until = earlier.expires, earlier.complete_until
            self.source, self.refused = earlier.source, earlier.refused
        self.failures = 0  # look-ups in a row
        self.error = ""  # that of the last failed look-up
        self.started = float("-inf")  # the last look-up
        self.wanted = asyncio.Event()  # somebody asked for one since that began
        self.timer: asyncio.TimerHandle | None = None  # the end of the hold, while look-ups fail

    def cancel_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
