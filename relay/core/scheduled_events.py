"""Azure Scheduled Events: what a document says of this machine, and what is to be done about it.

A document lists the events under way for all machines of a scale set's placement group. `parse` picks those that name
this one. `Watchlist` compares successive documents, and says once what begins, comes earlier, or is over.

Sources: learn.microsoft.com, "Scheduled Events for Linux VMs" (api-version 2020-07-01), and for machines' names
"Terminate notification for Azure Virtual Machine Scale Set instances".
"""

from __future__ import annotations

import enum
import math
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

FREEZE, REBOOT, REDEPLOY, PREEMPT, TERMINATE = "Freeze", "Reboot", "Redeploy", "Preempt", "Terminate"
SCHEDULED, STARTED, COMPLETED = "Scheduled", "Started", "Completed"  # the last is nowhere served, but would be the end

OUTLIVED = frozenset({FREEZE})  # connections outlive it: the machine stands still for seconds; they end with any other
LAST = frozenset({PREEMPT, TERMINATE})  # the machine is gone after these; it comes back after any other
# Seconds from the first sight of an event to its NotBefore, at least: "Event scheduling" of the source.
LEAST_NOTICE = {FREEZE: 900.0, REBOOT: 900.0, REDEPLOY: 600.0, PREEMPT: 30.0, TERMINATE: 300.0}
UNKNOWN_NOTICE = min(LEAST_NOTICE.values())  # of a kind that came later, such as the upgrade of an image in place

MOST_TEXT = 200  # characters of what is only passed on to people
MOST_ID = 128  # characters; an event id has 36

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# What may be the time now: from before there was the service to where time_t of 32 bits ends.
_EARLIEST, _LATEST = datetime(2015, 1, 1, tzinfo=UTC).timestamp(), float(1 << 31)
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
# "Mon, 19 Sep 2016 18:29:47 GMT". The day of the week is not looked at: that of the source's own example is wrong.
_HTTP_DATE = re.compile(
    rf"(?:[A-Z][a-z]+, )?(\d{{1,2}}) ({'|'.join(_MONTHS)}) (\d{{4}}) (\d\d):(\d\d):(\d\d) (?:GMT|UTC)", re.ASCII
)


class MalformedDocument(ValueError):
    """The document as a whole is not what the service answers; the text says how."""


class _MalformedEvent(ValueError):
    """One event is not; the text says how."""


class Notice(NamedTuple):
    """One event that concerns this machine."""

    event_id: str
    kind: str  # as told: one of the five above, or one that came later, which ends connections like a reboot
    status: str  # as told
    seconds_left: float  # from the receipt on, when nothing else is said; 0: past, started, or no time given
    not_before: float | None  # seconds since 1970, as told; None: started, no time given, or an unreadable one
    concerns_only_this_vm: bool
    source: str = ""  # Platform or User
    description: str = ""  # at most MOST_TEXT characters, printable


class Document(NamedTuple):
    """What a document says of this machine."""

    notices: list[Notice]
    problems: list[str]  # what could not be read of it, one line each


def service_time(date: str | None) -> float | None:
    """What the service's clock said when it answered, in seconds since 1970, from the answer's Date field.

    It is in whole seconds (RFC 9110 section 6.6.1). None if there is no such field, or no time in it that could be now.
    """
    told = _time(date)
    return told if told is not None and _EARLIEST <= told < _LATEST else None


def parse(document: object, own_name: str, told_at: float) -> Document:
    """The events that name `own_name`, in any case of letters; none for an empty one.

    `document` is decoded JSON. `told_at` is when it was told, in seconds since 1970 by the clock that its times were
    made with, the service's: another clock may be minutes off. An event that cannot be read is skipped, and told of in
    `problems`. One whose time alone cannot be read is taken to be as near as its kind may be. Raises MalformedDocument,
    and nothing else.
    """
    if not isinstance(document, dict):
        raise MalformedDocument(f"is {_type(document)}, not an object")
    events = document.get("Events")
    if not isinstance(events, list):
        raise MalformedDocument(f"Events is {_type(events)}, not an array")
    own = own_name.casefold()
    notices: list[Notice] = []
    problems: list[str] = []
    for number, event in enumerate(events):
        try:
            notice, problem = _notice(event, own, told_at)
        except _MalformedEvent as error:
            notice, problem = None, str(error)
        if notice is not None:
            notices.append(notice)
        if problem:
            problems.append(f"Events[{number}]: {problem}")
    return Document(notices, problems)


def _notice(event: object, own: str, told_at: float) -> tuple[Notice | None, str]:
    """The event if it names `own`, and what is wrong with it all the same. Raises _MalformedEvent."""
    if not isinstance(event, dict):
        raise _MalformedEvent(f"is {_type(event)}, not an object")
    resources = event.get("Resources")
    if not isinstance(resources, list):
        raise _MalformedEvent(f"Resources is {_type(resources)}, not an array")
    ours = [isinstance(name, str) and name.casefold() == own for name in resources]
    if not own or not any(ours):
        return None, ""
    kind = _word(event, "EventType")
    status = _word(event, "EventStatus")
    problem = ""
    not_before, left = None, 0.0
    told = event.get("NotBefore")
    if status != STARTED and told not in (None, ""):
        not_before = _time(told)
        if not_before is None:
            problem = f"NotBefore is {_shown(told)}, not a time"
            left = LEAST_NOTICE.get(kind, UNKNOWN_NOTICE)
        else:
            left = max(0.0, not_before - told_at)
    found = Notice(
        event_id=_word(event, "EventId"),
        kind=kind,
        status=status,
        seconds_left=left,
        not_before=not_before,
        concerns_only_this_vm=all(ours),
        source=_remark(event.get("EventSource")),
        description=_remark(event.get("Description")),
    )
    return found, problem


def _word(event: dict[object, object], key: str) -> str:
    value = event.get(key)
    if not isinstance(value, str) or not value or len(value) > MOST_ID or not value.isprintable():
        raise _MalformedEvent(f"{key} is {_shown(value)}")
    return value


def _remark(value: object) -> str:
    if not isinstance(value, str):
        return ""
    return "".join(letter if letter.isprintable() else "?" for letter in value[:MOST_TEXT])


def _time(value: object) -> float | None:
    """Seconds since 1970. ISO 8601, which earlier versions of the source showed, is read as well."""
    if not isinstance(value, str):
        return None
    try:
        match = _HTTP_DATE.fullmatch(value)
        if match is None:
            told = datetime.fromisoformat(value)
            if told.tzinfo is None:
                return None
        else:
            day, month, *rest = match.groups()
            year, hour, minute, second = map(int, rest)
            told = datetime(year, _MONTHS.index(month) + 1, int(day), hour, minute, second, tzinfo=UTC)
        return (told - _EPOCH) / timedelta(seconds=1)
    except (ValueError, OverflowError):
        return None


def _shown(value: object) -> str:
    """For a message. Not the repr of anything: that of JSON may be long, and deeper than the stack."""
    return f"{value[:40]!r}" if isinstance(value, str) else _type(value)


def _type(value: object) -> str:
    return "missing" if value is None else f"of type {type(value).__name__}"


class Do(enum.Enum):
    """What is to be done about an event."""

    BEGIN = "begin"  # get ready for it, in seconds_left
    UPDATE = "update"  # it comes earlier than it was said to when it began
    CANCELLED = "cancelled"  # it began, and will not come
    COMPLETED = "completed"  # it began, came, and is over
    NOTE = "note"  # nothing but to tell people: it ends no connections, is far off, or has another status or time


class Action(NamedTuple):
    """One thing that is to be done now. The notice's seconds_left count from now on."""

    do: Do
    notice: Notice


@dataclass(slots=True)
class _Entry:
    """One event under way."""

    notice: Notice  # the latest
    deadline: float  # monotonic seconds
    not_before: float | None  # what `deadline` was made of
    past: bool  # this machine has just been through it
    begun: bool = False

    def notice_at(self, now: float) -> Notice:
        return self.notice._replace(seconds_left=max(0.0, self.deadline - now))


class Watchlist:
    """The events under way, from one document to the next.

    An event begins when it is seen, and no earlier than `ahead` seconds before its time. Its time becomes one of the
    monotonic clock when it is seen first; from then on only another NotBefore changes it, by the difference, and a step
    of a wall clock, here or there, does not. Once it has begun it is put off no more: whoever was told is at it.
    """

    def __init__(self, ahead: float = math.inf) -> None:
        self._ahead = ahead
        self._entries: dict[str, _Entry] = {}
        self._first = True

    def update(self, document: Document, now: float) -> list[Action]:
        """What the next document changes. `now` is monotonic seconds, when it came."""
        actions: list[Action] = []
        present: dict[str, Notice] = {}
        completed: set[str] = set()
        for notice in document.notices:
            if notice.status == COMPLETED:
                completed.add(notice.event_id)
            else:
                present[notice.event_id] = notice
        for event_id, notice in present.items():
            entry = self._entries.get(event_id)
            if entry is None:
                actions.append(self._new(notice, now))
            else:
                actions += self._known(entry, notice, now)
        for event_id in [known for known in self._entries if known not in present]:
            # What could not be read may have been this event.
            if not document.problems or event_id in completed:
                actions += self._over(self._entries.pop(event_id), now)
        self._first = False
        return actions

    def get(self, event_id: str, now: float) -> Notice | None:
        """An event under way, its seconds_left counted from `now`."""
        entry = self._entries.get(event_id)
        return entry.notice_at(now) if entry is not None else None

    def events(self, now: float) -> tuple[Notice, ...]:
        """All events under way that concern this machine."""
        return tuple(entry.notice_at(now) for entry in self._entries.values())

    def _new(self, notice: Notice, now: float) -> Action:
        # A reboot, or what is like one, stays on the list as started, for ten minutes after it: this process may be the
        # first thing that the machine does then, and has nothing to get ready for.
        past = self._first and notice.status == STARTED and notice.kind not in LAST
        entry = _Entry(notice, now + notice.seconds_left, notice.not_before, past)
        self._entries[notice.event_id] = entry
        return Action(Do.BEGIN if self._begins(entry, now) else Do.NOTE, entry.notice_at(now))

    def _known(self, entry: _Entry, notice: Notice, now: float) -> list[Action]:
        before, entry.notice = entry.notice, notice
        entry.past = entry.past and notice.status == STARTED
        moved = self._move(entry, notice, now)
        if self._begins(entry, now):
            do = Do.BEGIN
        elif moved and entry.begun:
            do = Do.UPDATE
        elif moved or (notice.kind, notice.status) != (before.kind, before.status):
            do = Do.NOTE
        else:
            return []
        return [Action(do, entry.notice_at(now))]

    def _begins(self, entry: _Entry, now: float) -> bool:
        if entry.begun or entry.past or entry.notice.kind in OUTLIVED:
            return False
        entry.begun = entry.deadline - now <= self._ahead
        return entry.begun

    @staticmethod
    def _move(entry: _Entry, notice: Notice, now: float) -> bool:
        """Whether its time is another one now."""
        if notice.not_before is None or entry.not_before is None:
            deadline = now + notice.seconds_left
        else:
            deadline = entry.deadline + (notice.not_before - entry.not_before)
        put_off = deadline > entry.deadline
        if deadline == entry.deadline or (put_off and (entry.begun or notice.not_before is None)):
            return False
        entry.deadline, entry.not_before = deadline, notice.not_before
        return True

    @staticmethod
    def _over(entry: _Entry, now: float) -> list[Action]:
        if not entry.begun:
            return []
        return [Action(Do.COMPLETED if entry.notice.status == STARTED else Do.CANCELLED, entry.notice_at(now))]
