"""Other settings for a relay that runs: read and checked as a whole, then put into effect for what comes next.

Established connections stay as they are, and no new one is refused. Whatever is wrong leaves everything as it was: a
file with a mistake, an address that cannot be had, a setting that only a start can change.

The settings are read and checked in a thread, since a file system may hang and a large file takes its time; what
follows is one step of the event loop: nobody sees half of it, and no worker is started by half of it. One reload is
under way at a time. Those that are asked for meanwhile wait, and share one further reading.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable

from relay import process
from relay.engines.options import set_inherited
from relay.settings.file_reader import READ_SECONDS
from relay.settings.model import Settings, SettingsError, names, value
from relay.settings.warnings import settings_warnings
from relay.supervisor.instance import Binding, Instance, StartError, limit_plan, tcp_options
from relay.supervisor.prepare import bind_all, limit_notes, listener_limits, watchdog_notes
from relay.supervisor.service_log import ServiceLog

# What memory, processes and ports were made for at the start.
FIXED = (
    "workers",
    "engine",
    "limits.held_bytes",
    "dial.source_addresses",
    "admin.bind",
    "health.bind",
    "azure.scheduled_events",
    "azure.metadata_url",
    "log.format",
    "log.access",
)


LOAD_SECONDS = READ_SECONDS + 3.0  # for reading and checking; `relay reload` waits for ten


class Reloader:
    """Reloads the settings of one run.

    `load` gets the settings in effect, reads the new ones, and raises SettingsError. Once the instance has changed,
    `apply` puts it into effect; it gets the addresses that relay did not listen on before. `why_not` gives any other
    reason that forbids a reload, or an empty string.
    """

    def __init__(
        self,
        instance: Instance,
        load: Callable[[Settings | None], Settings],
        apply: Callable[[list[str]], None],
        why_not: Callable[[], str],
        log: ServiceLog,
    ) -> None:
        self._instance = instance
        self._load = load
        self._apply = apply
        self._why_not = why_not
        self._log = log
        self.results = {"ok": 0, "failed": 0}
        self.pending = 0  # reloads that were asked for and not answered yet
        self.reading = False
        self._turn = asyncio.Lock()
        self._answered = -1.0  # whoever asked before that time is answered by the last outcome
        self._last: list[str] = []

    async def reload(self, reason: str) -> list[str]:
        """Reload; what is in the way, a line each, or nothing."""
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
        if problem := self._why_not():
            return [problem]
        asked = time.monotonic()
        async with self._turn:
            if asked < self._answered:
                return self._last
            began = time.monotonic()
            try:
                self._last = self._try(await self._read(), reason)
            except SettingsError as error:
                self._last = error.problems
            except Exception as error:  # noqa: BLE001 - the reason goes to whoever asked, with its traceback to the log
                self._log.exception("reload failed", reason=reason)
                self._last = [f"a defect of relay: {error!r}"]
            # If the file system hangs, those who have been waiting meanwhile would only wait as long again.
            ended = time.monotonic()
            self._answered = ended if ended - began >= READ_SECONDS else began
            return self._last

    async def _read(self) -> Settings:
        """Read the settings in a thread of its own, which the end of the process does not wait for.

        Raises SettingsError.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Settings] = loop.create_future()
        before = self._instance.settings

        def deliver(settings: Settings | None, error: Exception | None) -> None:
            if done.cancelled():
                return
            if error is not None:
                done.set_exception(error)
            elif settings is not None:
                done.set_result(settings)

        def run() -> None:
            process.hold()  # what it starts must not be ended by a signal that is for the supervisor
            settings, problem = None, None
            try:
                settings = self._load(before)
            except Exception as error:  # noqa: BLE001 - raised again where the result is waited for
                problem = error
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(deliver, settings, problem)

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

    def _try(self, settings: Settings, reason: str) -> list[str]:
        """Put the settings into effect, in one step; what is in the way, or nothing."""
        instance = self._instance
        if problem := self._why_not():  # since they were being read
            return [problem]
        changed = changes(instance.settings, settings)
        if problems := refusals(instance, settings, changed):
            return problems
        opened = lifted(instance.settings, settings)
        try:
            fresh = self._change(settings)
        except StartError as error:
            return error.problems
        self._apply(fresh)
        self._log.info("reloaded", reason=reason, changed=changed)
        if opened:
            left = restrictions(settings)
            self._log.warning("access restrictions removed", settings=opened, left=sorted(left))
        for note in instance.notes:
            self._log.warning(note)
        return []

    def _change(self, settings: Settings) -> list[str]:
        """Change the instance; returns the new listening addresses. Raises StartError, and then nothing has changed."""
        instance = self._instance
        here: dict[str, Binding] = {**instance.inherited, **{binding.asked: binding for binding in instance.bindings()}}
        kept = {**{asked: binding for asked, (binding, _) in instance.unlistened.items()}, **here}
        listeners, upstreams = dict(instance.listener_numbers), dict(instance.upstream_numbers)
        problems: list[str] = []
        notes: list[str] = []
        bound = bind_all(settings, instance.workers, listeners, upstreams, kept, problems, notes)
        new = [binding for one in bound for binding in one.bindings if binding.asked not in here]
        used = {binding.asked for one in bound for binding in one.bindings}
        problems += [
            f"listeners: {binding.address} is systemd's socket and would be left without a listener: take it out of "
            "ListenStream=, and restart both units"
            for binding in {id(item): item for item in instance.inherited.values()}.values()
            if binding.asked not in used
        ]
        for what, count, room in (
            ("listeners", len(listeners), instance.layout.listeners),
            ("upstreams", len(upstreams), instance.layout.upstreams),
        ):
            if count > room:
                problems.append(f"{what}: {count} different ones since the start, room for {room}; restart relay")
        if problems:
            for binding in new:
                if binding.asked not in kept:
                    binding.close()
            raise StartError(problems)
        wanted = {binding.asked for one in bound for binding in one.bindings}
        gone = [binding for binding in instance.bindings() if binding.asked not in wanted]
        tcp = tcp_options(settings)
        other_tcp = tcp != tcp_options(instance.settings)
        own_limits = listener_limits(bound, instance.layout.listeners)
        limits = limit_plan(settings, instance.limits, instance.workers, instance.limits.capacity, own_limits)
        notes += settings_warnings(settings) + limit_notes(settings, instance.descriptors, limits)
        notes += watchdog_notes(settings, instance.watchdog)
        instance.reconfigure(settings, bound, listeners, upstreams, limits, notes)
        for binding in new:
            instance.listen_again(binding)
        if other_tcp:
            for sock in (sock for binding in instance.bindings() for sock in binding.sockets):
                with contextlib.suppress(OSError):  # a kernel that refuses one of them is no reason to stop half-way
                    set_inherited(sock, tcp)
        instance.unlisten(gone)  # the workers still accept what is in the queues of their copies
        return [binding.address for binding in new]


def changes(before: Settings, after: Settings) -> list[str]:
    """The names of the settings that differ; listeners by their own name."""
    found = [
        name for name in names() if name not in ("listeners", "upstream") and value(before, name) != value(after, name)
    ]
    old, new = ({item.name: item for item in settings.listeners} for settings in (before, after))
    return found + [f"listeners.{name}" for name in {**old, **new} if old.get(name) != new.get(name)]


def restrictions(settings: Settings) -> dict[str, object]:
    """What keeps clients out, by the names of the settings; what is off is left out."""
    found: dict[str, object] = {
        name: value(settings, name)
        for name in (
            "access.allow",
            "access.deny",
            "limits.max_connections_per_source",
            "limits.connect_rate_per_source",
        )
    }
    found |= {f"listeners.{item.name}.sni": item.sni for item in settings.listeners}
    return {name: setting for name, setting in found.items() if setting}


def lifted(before: Settings, after: Settings) -> list[str]:
    """The restrictions that were there and are no more; a listener that goes takes its own with it."""
    listeners = {f"listeners.{item.name}.sni" for item in after.listeners}
    return sorted(
        name
        for name in restrictions(before).keys() - restrictions(after).keys()
        if not name.startswith("listeners.") or name in listeners
    )


def refusals(instance: Instance, after: Settings, changed: list[str]) -> list[str]:
    """What of it a running relay cannot change."""
    before = instance.settings
    return [refusal(name, value(before, name), value(after, name)) for name in changed if name in FIXED]


def refusal(name: str, before: object, after: object) -> str:
    """The line for a setting of FIXED that would change."""
    return f"{name}: is {before!r}, and only a restart can make it {after!r}"
