"""Other settings for a relay that runs: read and checked as a whole, then put into effect for what comes next.

Established connections stay as they are, and no new one is refused. Whatever is wrong leaves everything as it was: a
file with a mistake, an address that cannot be had, a setting that only a start can change.

All of it is one step of the event loop: nobody sees half of it, and no worker is started by half of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from relay.binding import Port, port_of
from relay.plan import Binding, Plan, StartError, limit_plan, rate_plan
from relay.prepare import bind_all, limit_notes, listener_limits, watchdog_notes
from relay.settings import Settings, SettingsError, names, value
from relay.settings_warnings import settings_warnings

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


LEAVING = 5.0  # seconds in which a worker has closed a listening socket that it was to leave, and some


class Reloader:
    """Reloads the settings of one run.

    `load` reads them and raises SettingsError. `apply` gets the addresses that were not listened on before, once the
    plan is a new one, and puts it into effect.
    """

    def __init__(self, plan: Plan, load: Callable[[], Settings], apply: Callable[[list[str]], None], log: Any) -> None:
        self._plan = plan
        self._load = load
        self._apply = apply
        self._log = log
        self.results = {"ok": 0, "failed": 0}
        self._leaving: dict[Port, float] = {}  # until when a worker may have a socket there

    def reload(self, reason: str, why_not: str = "") -> list[str]:
        """Reload; what is in the way, a line each, or nothing. `why_not`: something else is."""
        problems = [why_not] if why_not else self._try(reason)
        self.results["failed" if problems else "ok"] += 1
        if problems:
            self._log.error("reload failed", reason=reason, problems=problems)
        return problems

    def _try(self, reason: str) -> list[str]:
        plan = self._plan
        try:
            settings = self._load()
        except SettingsError as error:
            return error.problems
        changed = changes(plan.settings, settings)
        if problems := refusals(plan, settings, changed):
            return problems
        try:
            fresh = self._change(settings)
        except StartError as error:
            return error.problems
        self._apply(fresh)
        self._log.info("reloaded", reason=reason, changed=changed)
        for note in plan.notes:
            self._log.warning(note)
        return []

    def _change(self, settings: Settings) -> list[str]:
        """Make the plan a new one; the addresses that are listened on anew. Raises StartError, and nothing changed."""
        plan = self._plan
        here: dict[str, Binding] = {**plan.inherited, **{binding.asked: binding for binding in plan.bindings()}}
        kept = {**{asked: binding for asked, (binding, _) in plan.left.items()}, **here}
        listeners, upstreams = dict(plan.listener_numbers), dict(plan.upstream_numbers)
        problems: list[str] = []
        notes: list[str] = []
        now = time.monotonic()
        leaving = {port: until for port, until in self._leaving.items() if now < until}
        ours = {*leaving, *(port_of(binding.address) for binding in plan.bindings())}
        bound = bind_all(settings, plan.workers, listeners, upstreams, kept, ours, problems, notes)
        new = [binding for one in bound for binding in one.bindings if binding.asked not in here]
        used = {binding.asked for one in bound for binding in one.bindings}
        problems += [
            f"listeners: {binding.address} is systemd's socket and would be left without a listener: take it out of "
            "ListenStream=, and restart both units"
            for binding in {id(item): item for item in plan.inherited.values()}.values()
            if binding.asked not in used
        ]
        for what, count, room in (
            ("listeners", len(listeners), plan.layout.listeners),
            ("upstreams", len(upstreams), plan.layout.upstreams),
        ):
            if count > room:
                problems.append(f"{what}: {count} different ones since the start, room for {room}; restart relay")
        if problems:
            for binding in new:
                if binding.asked not in kept:
                    binding.close()
            raise StartError(problems)
        wanted = {binding.asked for one in bound for binding in one.bindings}
        gone = [binding for binding in plan.bindings() if binding.asked not in wanted]
        plan.listeners, plan.listener_numbers, plan.upstream_numbers = bound, listeners, upstreams
        plan.settings = settings
        limits = listener_limits(bound, plan.layout.listeners)
        plan.limits = limit_plan(settings, plan.limits, plan.workers, plan.capacity, limits)
        plan.rates.plan = rate_plan(settings)
        plan.notes = (
            notes + settings_warnings(settings) + limit_notes(settings, plan.descriptors, plan.capacity * plan.workers)
        )
        plan.notes += watchdog_notes(settings, plan.watchdog)
        self._leaving = leaving | {port_of(binding.address): now + LEAVING for binding in gone}
        for binding in new:
            plan.take_back(binding)
        plan.leave(gone)  # the workers have theirs, and serve who waits there
        return [binding.address for binding in new]


def changes(before: Settings, after: Settings) -> list[str]:
    """The names of the settings that differ; listeners by their own name."""
    found = [
        name for name in names() if name not in ("listeners", "upstream") and value(before, name) != value(after, name)
    ]
    old, new = ({item.name: item for item in settings.listeners} for settings in (before, after))
    return found + [f"listeners.{name}" for name in {**old, **new} if old.get(name) != new.get(name)]


def refusals(plan: Plan, after: Settings, changed: list[str]) -> list[str]:
    """What of it a running relay cannot change."""
    before = plan.settings
    return [refusal(name, value(before, name), value(after, name)) for name in changed if name in FIXED]


def refusal(name: str, before: object, after: object) -> str:
    """The line for a setting of FIXED that would change."""
    return f"{name}: is {before!r}, and only a restart can make it {after!r}"
