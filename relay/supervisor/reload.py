"""Reloads the settings of a running relay: reads and checks them as a whole, then puts them into effect.

New settings apply to new connections. Established ones keep their limits, their upstream and their log line; only
timeouts.idle and half_close (a listener's too), tcp.user_timeout and the pace of timeouts.max_age apply to them at
once. No client is refused by a reload. A mistake in the file, an address that cannot be bound, or a changed setting
that needs a restart leaves everything as it was.

The settings are read and checked in a thread, since a file system may hang and a large file takes time. The change
itself is one step of the event loop, so that no other code sees half of it and no worker starts with half of it. Only
one reload runs at a time; those requested meanwhile wait, and share one further reading.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from relay import process
from relay.core.customer_slots import NoSlot
from relay.core.rates import ROUTE_BUCKETS
from relay.engines.options import set_inherited
from relay.settings.file_reader import READ_SECONDS
from relay.settings.fingerprint import fingerprint
from relay.settings.model import Settings, SettingsError, names, value
from relay.settings.warnings import settings_warnings
from relay.supervisor.customers import PreparedCustomers
from relay.supervisor.instance import Binding, Instance, StartError, limit_plan, tcp_options
from relay.supervisor.prepare import bind_all, limit_notes, listener_limits, watchdog_notes
from relay.supervisor.service_log import ServiceLog

# Settings that need a restart: memory, processes and ports were made for their values.
FIXED = (
    "workers",
    "engine",
    "limits.held_bytes",
    "dial.source_addresses",
    "admin.bind",
    "health.bind",
    "azure.scheduled_events",
    "azure.metadata_url",
    "azure.settings_state",
    "log.format",
    "log.access",
)


NO_SLOT = (
    "customers: no place is left for another one: removed customers still have connections; try again when those have "
    "ended, or restart relay"
)
LOAD_SECONDS = READ_SECONDS + 4.5  # limit for reading and checking; `relay reload` waits for ten


class Wanted(NamedTuple):
    """New settings, and what takes time to make from them."""

    settings: Settings
    hash: str  # `settings.fingerprint`
    customers: PreparedCustomers


class Reloader:
    """Reloads the settings of one run.

    `load` gets the settings in effect, and returns the new ones or raises SettingsError. `apply` puts the changed
    instance into effect; it gets the addresses with new listening sockets. `refused` returns why no reload is possible
    now, or an empty string.
    """

    def __init__(
        self,
        instance: Instance,
        load: Callable[[Settings | None], Settings],
        apply: Callable[[list[str]], None],
        refused: Callable[[], str],
        log: ServiceLog,
    ) -> None:
        self._instance = instance
        self._load = load
        self._apply = apply
        self._refused = refused
        self._log = log
        self.results = {"ok": 0, "failed": 0}
        self.pending = 0  # reloads requested and not answered yet
        self.reading = False
        self._turn = asyncio.Lock()
        self._read_at = -1.0  # a reload requested before this time shares the last one's result
        self._last: list[str] = []  # that result: the problems

    async def reload(self, reason: str) -> list[str]:
        """Reload; returns the problems that prevented it, a line each, or an empty list."""
        self.pending += 1
        try:
            problems = await self._in_turn(reason)
        finally:
            self.pending -= 1
        self.results["failed" if problems else "ok"] += 1
        if problems:
            self._log.error("reload failed", reason=reason, problems=problems)
        return problems

    async def _in_turn(self, reason: str) -> list[str]:
        if problem := self._refused():
            return [problem]
        asked = time.monotonic()
        async with self._turn:
            if asked < self._read_at:
                return self._last
            began = time.monotonic()
            try:
                self._last = self._try(await self._read(), reason)
            except SettingsError as error:
                self._last = error.problems
            except Exception as error:  # noqa: BLE001 - the caller gets the reason, the log the traceback
                self._log.exception("reload failed", reason=reason)
                self._last = [f"a defect of relay: {error!r}"]
            # If the file system hangs, reloads that have waited meanwhile would only wait as long again.
            ended = time.monotonic()
            self._read_at = ended if ended - began >= READ_SECONDS else began
            return self._last

    async def _read(self) -> Wanted:
        """Read the settings in a daemon thread, so that the end of the process does not wait for it.

        What takes time is made from them there too. Raises SettingsError.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Wanted] = loop.create_future()
        instance, before = self._instance, self._instance.settings

        def deliver(result: Wanted | None, error: Exception | None) -> None:
            if done.done():
                if result is not None:
                    result.customers.discard()
                return
            if error is not None:
                done.set_exception(error)
            elif result is not None:
                done.set_result(result)

        def run() -> None:
            process.hold()  # a signal for the supervisor must not end this thread's child process
            result: Wanted | None = None
            problem: Exception | None = None
            try:
                settings = self._load(before)
                hashed = fingerprint(settings)
                result = Wanted(settings, hashed, instance.customers.prepare(settings, instance.numbers.listeners))
                if settings.customers:
                    process.return_memory()
            except NoSlot:
                problem = SettingsError([NO_SLOT])
            except Exception as error:  # noqa: BLE001 - raised again where the result is awaited
                problem = error
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(deliver, result, problem)

        self.reading = True
        try:
            threading.Thread(target=run, name="settings", daemon=True).start()
            return await asyncio.wait_for(done, LOAD_SECONDS)
        except TimeoutError:
            raise SettingsError([f"settings: not read within {LOAD_SECONDS:g} s"]) from None
        except RuntimeError as error:
            raise SettingsError([f"settings: not read: {error}"]) from None
        finally:
            self.reading = False

    def _try(self, wanted: Wanted, reason: str) -> list[str]:
        """Put the settings into effect in one step; returns the problems that prevented it, if any."""
        try:
            return self._put(wanted, reason)
        finally:
            if self._instance.customers.descriptor != wanted.customers.descriptor:  # nothing has changed
                wanted.customers.discard()

    def _put(self, wanted: Wanted, reason: str) -> list[str]:
        instance, settings = self._instance, wanted.settings
        if problem := self._refused():  # a drain may have begun during the reading
            return [problem]
        changed = changes(instance.settings, settings)
        if problems := refusals(instance, settings, changed):
            return problems
        opened = lifted(instance.settings, settings)
        try:
            new_addresses = self._change(wanted)
        except StartError as error:
            return error.problems
        self._apply(new_addresses)
        self._log.info("reloaded", reason=reason, changed=changed)
        if opened:
            left = restrictions(settings)
            self._log.warning("access restrictions removed", settings=opened, left=sorted(left))
        for note in instance.notes:
            self._log.warning(note)
        return []

    def _change(self, wanted: Wanted) -> list[str]:
        """Change the instance; returns the new listening addresses. Raises StartError; then nothing has changed."""
        instance, settings = self._instance, wanted.settings
        here: dict[str, Binding] = {**instance.inherited, **{binding.asked: binding for binding in instance.bindings()}}
        existing = {**{asked: binding for asked, (binding, _) in instance.unlistened.items()}, **here}
        numbers = instance.numbers.copy()
        problems: list[str] = []
        notes: list[str] = []
        bound = bind_all(settings, instance.workers, numbers, existing, problems, notes)
        new = [binding for item in bound for binding in item.bindings if binding.asked not in here]
        used = {binding.asked for item in bound for binding in item.bindings}
        problems += [
            f"listeners: {binding.address} is systemd's socket and would be left without a listener: take it out of "
            "ListenStream=, and restart both units"
            for binding in {id(item): item for item in instance.inherited.values()}.values()
            if binding.asked not in used
        ]
        for what, count, room in (
            ("listeners", len(numbers.listeners), instance.layout.listeners),
            ("upstreams", len(numbers.upstreams), instance.layout.upstreams),
            ("routes", len(numbers.routes), instance.layout.routes),
            ("routes with a rate", len(numbers.buckets), ROUTE_BUCKETS),
        ):
            if count > room:
                problems.append(f"{what}: {count} different ones since the start, room for {room}; restart relay")
        if problems:
            for binding in new:
                if binding.asked not in existing:
                    binding.close()
            raise StartError(problems)
        gone = [binding for binding in instance.bindings() if binding.asked not in used]
        tcp = tcp_options(settings)
        other_tcp = tcp != tcp_options(instance.settings)
        own_limits = listener_limits(bound, instance.layout.listeners)
        limits = limit_plan(settings, instance.limits, instance.workers, instance.limits.capacity, own_limits)
        notes += settings_warnings(settings) + limit_notes(settings, instance.descriptors, limits)
        notes += watchdog_notes(settings, instance.watchdog)
        instance.reconfigure(settings, wanted.hash, bound, numbers, limits, wanted.customers, notes)
        for binding in new:
            instance.listen_again(binding)
        if other_tcp:
            for sock in (sock for binding in instance.bindings() for sock in binding.sockets):
                with contextlib.suppress(OSError):  # a kernel that refuses an option must not stop the change half-way
                    set_inherited(sock, tcp)
        instance.unlisten(gone)  # the workers still accept what is in the queues of their copies
        return [binding.address for binding in new]


def changes(before: Settings, after: Settings) -> list[str]:
    """The names of the settings that differ; listeners by their own name."""
    found = [
        name
        for name in names()
        if name not in ("listeners", "routes", "upstream") and value(before, name) != value(after, name)
    ]
    old, new = ({item.name: item for item in settings.listeners} for settings in (before, after))
    return found + [f"listeners.{name}" for name in {**old, **new} if old.get(name) != new.get(name)]


def restrictions(settings: Settings) -> dict[str, object]:
    """The settings in effect that keep clients out, by name; those that are off are left out."""
    found: dict[str, object] = {
        name: value(settings, name)
        for name in (
            "access.allow",
            "access.deny",
            "customers",
            "limits.max_connections_per_source",
            "limits.connect_rate_per_source",
        )
    }
    for item in settings.listeners:
        # Without an upstream of its own, a listener lets the names of its routes through and no others.
        routed = tuple(name for route in item.routes for name in route.sni)
        found[f"listeners.{item.name}.sni"] = item.sni if item.upstream else routed
        found[f"listeners.{item.name}.access.allow"] = item.access.allow
        found[f"listeners.{item.name}.access.deny"] = item.access.deny
        found[f"listeners.{item.name}.trusted_proxies"] = item.trusted_proxies
    return {name: setting for name, setting in found.items() if setting}


def lifted(before: Settings, after: Settings) -> list[str]:
    """The restrictions that a reload removes; those of a listener that it removes as well do not count."""
    listeners = {item.name for item in after.listeners}
    return sorted(
        name
        for name in restrictions(before).keys() - restrictions(after).keys()
        if not name.startswith("listeners.") or name.split(".")[1] in listeners
    )


def refusals(instance: Instance, after: Settings, changed: list[str]) -> list[str]:
    """A line for each changed setting that needs a restart."""
    before = instance.settings
    return [refusal(name, value(before, name), value(after, name)) for name in changed if name in FIXED]


def refusal(name: str, before: object, after: object) -> str:
    """The error line for a changed setting of FIXED."""
    return f"{name}: is {before!r}, and only a restart can make it {after!r}"
