"""Azure Scheduled Events: parses the service's documents, and turns their changes into actions for this machine.

A document lists the scheduled events of all machines of a scale set's placement group. `parse` picks the events that
name this machine. `Watchlist` compares successive documents, and reports each event once when it begins, comes earlier,
or is over.

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
SCHEDULED, STARTED, COMPLETED = "Scheduled", "Started", "Completed"  # Completed is never served, but would mean the end

OUTLIVED = frozenset({FREEZE})  # connections survive these, a pause of some seconds; all other kinds end them
LAST = frozenset({PREEMPT, TERMINATE})  # the machine is gone after these; it comes back after all other kinds
# Least seconds from an event's first appearance to its NotBefore: "Event scheduling" in the first source.
LEAST_NOTICE = {FREEZE: 900.0, REBOOT: 900.0, REDEPLOY: 600.0, PREEMPT: 30.0, TERMINATE: 300.0}
UNKNOWN_NOTICE = min(LEAST_NOTICE.values())  # for kinds added later, such as the upgrade of an image in place

MOST_TEXT = 200  # characters kept of text that is only shown to people
MOST_ID = 128  # characters; an event id has 36

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Plausible values of the present time: from before the service existed to the end of a 32-bit time_t.
_EARLIEST, _LATEST = datetime(2015, 1, 1, tzinfo=UTC).timestamp(), float(1 << 31)
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
# "Mon, 19 Sep 2016 18:29:47 GMT". The day of the week is ignored: in the documentation's own example it is wrong.
_HTTP_DATE = re.compile(
    rf"(?:[A-Z][a-z]+, )?(\d{{1,2}}) ({'|'.join(_MONTHS)}) (\d{{4}}) (\d\d):(\d\d):(\d\d) (?:GMT|UTC)", re.ASCII
)


class MalformedDocument(ValueError):
    """The document as a whole does not have the service's format; the text says what is wrong."""


class _MalformedEvent(ValueError):
    """One event does not have the service's format; the text says what is wrong."""


class Notice(NamedTuple):
    """One event that concerns this machine."""

    event_id: str
    kind: str  # EventType: one of the five above, or one added later, which counts as ending connections
    status: str  # EventStatus
    seconds_left: float  # until NotBefore, from the receipt of the document unless noted; 0: past, started or no time
    not_before: float | None  # NotBefore, seconds since 1970; None: started, no time given, or an unreadable one
    concerns_only_this_vm: bool
    source: str = ""  # Platform or User
    description: str = ""  # at most MOST_TEXT characters, printable


class Document(NamedTuple):
    """The parts of a document that concern this machine."""

    notices: list[Notice]
    problems: list[str]  # the parts that could not be read, one line each


def service_time(date: str | None) -> float | None:
    """The time of an answer by the service's clock, in seconds since 1970, from the Date field.

    In whole seconds (RFC 9110 section 6.6.1). None if the field is absent or not a plausible present time.
    """
    seconds = _time(date)
    return seconds if seconds is not None and _EARLIEST <= seconds < _LATEST else None


def parse(document: object, own_name: str, told_at: float) -> Document:
    """The events that name `own_name`, case-insensitively; none if it is empty.

    `document` is decoded JSON. `told_at` is the time of the answer in seconds since 1970, by the service's clock, which
    its NotBefore times refer to: another clock may be minutes off. An event that cannot be read is skipped and reported
    in `problems`. An event whose time alone cannot be read gets the least notice of its kind. Raises MalformedDocument
    and no other exception.
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
    """The event if it names `own`, else None; and a problem that does not prevent its use. Raises _MalformedEvent."""
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
    text = event.get("NotBefore")
    if status != STARTED and text not in (None, ""):
        not_before = _time(text)
        if not_before is None:
            problem = f"NotBefore is {_shown(text)}, not a time"
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
    """A required string of an event. Raises _MalformedEvent."""
    value = event.get(key)
    if not isinstance(value, str) or not value or len(value) > MOST_ID or not value.isprintable():
        raise _MalformedEvent(f"{key} is {_shown(value)}")
    return value


def _remark(value: object) -> str:
    """Optional text for people: cut, and unprintable characters replaced."""
    if not isinstance(value, str):
        return ""
    return "".join(letter if letter.isprintable() else "?" for letter in value[:MOST_TEXT])


def _time(value: object) -> float | None:
    """A time in seconds since 1970; None if `value` is none. Also ISO 8601, which earlier documentation showed."""
    if not isinstance(value, str):
        return None
    try:
        match = _HTTP_DATE.fullmatch(value)
        if match is None:
            moment = datetime.fromisoformat(value)
            if moment.tzinfo is None:
                return None
        else:
            day, month, *rest = match.groups()
            year, hour, minute, second = map(int, rest)
            moment = datetime(year, _MONTHS.index(month) + 1, int(day), hour, minute, second, tzinfo=UTC)
        return (moment - _EPOCH) / timedelta(seconds=1)
    except (ValueError, OverflowError):
        return None


def _shown(value: object) -> str:
    """A value for a message: short text, or the type of other values, whose repr may be long or nested too deeply."""
    return f"{value[:40]!r}" if isinstance(value, str) else _type(value)


def _type(value: object) -> str:
    return "missing" if value is None else f"of type {type(value).__name__}"


class Do(enum.Enum):
    """The reaction to a change of an event. An event has begun once BEGIN was reported."""

    BEGIN = "begin"  # get ready within seconds_left
    UPDATE = "update"  # an event that has begun comes earlier than reported
    CANCELLED = "cancelled"  # an event that has begun will not happen
    COMPLETED = "completed"  # an event that has begun has happened and is over
    NOTE = "note"  # only log it: it ends no connections, is far off, or has changed its status or time


class Action(NamedTuple):
    """One reaction, due now. The notice's seconds_left count from now."""

    do: Do
    notice: Notice


@dataclass(slots=True)
class _Entry:
    """One event on the watchlist."""

    notice: Notice  # from the latest document
    deadline: float  # monotonic seconds
    not_before: float | None  # the NotBefore that `deadline` was computed from
    past: bool  # the event happened before this process started
    begun: bool = False  # BEGIN was reported

    def notice_at(self, now: float) -> Notice:
        return self.notice._replace(seconds_left=max(0.0, self.deadline - now))


class Watchlist:
    """The events under way, updated from document to document.

    An event begins when it is first seen, but not earlier than `ahead` seconds before its time. Its time is converted
    to the monotonic clock when it is first seen; from then on only another NotBefore changes it, by the difference, and
    a step of a wall clock, here or at the service, does not. Once begun, an event is not postponed, since the drain for
    it is under way.
    """

    def __init__(self, ahead: float = math.inf) -> None:
        self._ahead = ahead
        self._entries: dict[str, _Entry] = {}
        self._first = True

    def update(self, document: Document, now: float) -> list[Action]:
        """The actions for the next document, which was received at `now`, monotonic seconds."""
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
            # If a part of the document could not be read, that part may have been this event.
            if not document.problems or event_id in completed:
                actions += self._over(self._entries.pop(event_id), now)
        self._first = False
        return actions

    def get(self, event_id: str, now: float) -> Notice | None:
        """An event under way, with seconds_left from `now`; None if there is none of that id."""
        entry = self._entries.get(event_id)
        return entry.notice_at(now) if entry is not None else None

    def events(self, now: float) -> tuple[Notice, ...]:
        """All events under way that concern this machine, with seconds_left from `now`."""
        return tuple(entry.notice_at(now) for entry in self._entries.values())

    def _new(self, notice: Notice, now: float) -> Action:
        # A reboot or redeploy stays in the documents as started for ten minutes after it happened. If it is there when
        # this process starts, the machine has just come back from it, and there is nothing to get ready for.
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
        """Set the event's time from a new notice; True if it has changed."""
        if notice.not_before is None or entry.not_before is None:
            deadline = now + notice.seconds_left
        else:
            deadline = entry.deadline + (notice.not_before - entry.not_before)
        postponed = deadline > entry.deadline
        if deadline == entry.deadline or (postponed and (entry.begun or notice.not_before is None)):
            return False
        entry.deadline, entry.not_before = deadline, notice.not_before
        return True

    @staticmethod
    def _over(entry: _Entry, now: float) -> list[Action]:
        if not entry.begun:
            return []
        return [Action(Do.COMPLETED if entry.notice.status == STARTED else Do.CANCELLED, entry.notice_at(now))]
