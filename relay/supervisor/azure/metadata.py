"""Asks Azure's instance metadata service, once a second, whether something is about to happen to this machine.

What a document means is `core.scheduled_events`; here are the calls, their pace, and who is told. The service may be
slow, fail, talk nonsense or not be there: that is logged when it begins and when it is over, and it is asked for ever.

Sources: learn.microsoft.com, "Scheduled Events for Linux VMs" and "Azure Instance Metadata Service", which limits all
callers of a machine together to 5 requests per second.
"""

from __future__ import annotations

import asyncio
import functools
import json
import math
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, NamedTuple

import aiohttp

from relay.core.backoff import Backoff
from relay.core.scheduled_events import (
    MOST_ID,
    SCHEDULED,
    Action,
    Do,
    MalformedDocument,
    Notice,
    Watchlist,
    parse,
    service_time,
)
from relay.supervisor.probe import reason
from relay.supervisor.tasks import keep_running

EVENTS = "/metadata/scheduledevents?api-version=2020-07-01"
COMPUTE = "/metadata/instance/compute?api-version=2021-02-01"
MOST_BYTES = 256 * 1024  # of an answer; a document has some hundred bytes for each event
MOST_TEXT = 200  # characters of why a call has failed
MOST_PROBLEMS = 5  # events of a document that cannot be read, in one line of the log

MESSAGES = {
    Do.BEGIN: "scheduled event",
    Do.UPDATE: "scheduled event comes earlier",
    Do.CANCELLED: "scheduled event cancelled",
    Do.COMPLETED: "scheduled event over",
    Do.NOTE: "scheduled event noted",
}

Told = Callable[[Notice], None]


@dataclass(frozen=True, slots=True)
class Timing:
    """How often and how patiently the service is asked. Seconds. Only tests have another one."""

    poll: float = 1.0  # from the end of a call to the next: what the source recommends
    poll_most: float = 10.0  # likewise while calls fail: each failure in a row doubles it until then
    connect: float = 5.0  # for a connection
    call: float = 5.0  # for a call
    first: float = 150.0  # for the one that turns the events on for this machine: "up to two minutes"
    tries: int = 5  # to approve an event


class ServiceState(NamedTuple):
    """What /status shows. Ages are in seconds."""

    ok: bool | None  # how the last poll went; None: none has ended
    answer_age: float | None  # of the last good answer
    failing_seconds: float | None  # since the first of the failures that go on
    error: str  # of the last poll
    own_name: str  # what events call this machine; empty while that is not known
    own_name_error: str
    events: tuple[Notice, ...]  # that concern this machine


class CallFailed(Exception):
    """The service has not answered as it should; the text says why."""


class NoAnswer(CallFailed):
    """It has not answered in time."""


class _Answer(NamedTuple):
    """An answer with status 200."""

    body: bytes
    date: str | None  # the Date field


class ScheduledEvents:
    """Watches what the service at `metadata_url` (scheme and authority) says of this machine.

    An event's time is told by the service's clock, and so is the time that is left: this machine's may be minutes off.
    `begin` is told once of each event that ends connections, `updated` when it comes earlier than was said,
    `cancelled` when it will not come, `completed` when it is over and this machine still there; all from the event
    loop, with seconds_left as of now. An event more than `ahead` seconds away does not begin yet: hardware that is
    failing is told of days before. `own_name` is what events call this machine; empty: the service is asked for it.
    """

    def __init__(
        self,
        metadata_url: str,
        begin: Told,
        cancelled: Told,
        log: Any,
        *,
        updated: Told | None = None,
        completed: Told | None = None,
        ahead: float = math.inf,
        own_name: str = "",
        timing: Timing | None = None,
    ) -> None:
        self._url = metadata_url.rstrip("/")
        self._told = {Do.BEGIN: begin, Do.UPDATE: updated, Do.CANCELLED: cancelled, Do.COMPLETED: completed}
        self._log = log
        self._timing = timing if timing is not None else Timing()
        self._own_name = own_name
        self._watchlist = Watchlist(ahead)
        self._problems: list[str] = []
        self._timeless = False  # its last answer did not say when it was given
        self._first = True  # nobody has waited for the events to be turned on
        self._polls = Backoff(self._timing.poll, self._timing.poll_most)
        self._names = Backoff(self._timing.poll, self._timing.poll_most, steady=1)
        self._session: aiohttp.ClientSession | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self) -> None:
        """Begin to ask. Called once, from the event loop."""
        self._session = aiohttp.ClientSession(
            headers={"Metadata": "true", "Accept-Encoding": "identity"},
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,  # MOST_BYTES are what is read
            trust_env=False,  # the service is this host's own, and refuses what comes through a proxy
        )
        polls = functools.partial(self._ask_on, "scheduled events", self._poll, self._polls)
        self._spawn(keep_running("scheduled events", polls, self._log))
        if not self._own_name:
            names = functools.partial(self._ask_on, "own name", self._find_name, self._names)
            self._spawn(keep_running("own name", names, self._log))

    async def stop(self) -> None:
        """End all calls without waiting for their answers; who waits in `approve` gets False."""
        session, self._session = self._session, None
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if session is not None:
            await session.close()

    @property
    def state(self) -> ServiceState:
        """How it stands now."""
        now = asyncio.get_running_loop().time()
        polls = self._polls
        return ServiceState(
            ok=polls.ok,
            answer_age=None if polls.good_at is None else now - polls.good_at,
            failing_seconds=now - polls.failing_since if polls.failures else None,
            error=polls.error,
            own_name=self._own_name,
            own_name_error=self._names.error,
            events=self._watchlist.events(now),
        )

    async def approve(self, event_id: str) -> bool:
        """Let the platform begin an event now, and not wait for its time: this machine is ready.

        Only if it concerns this machine alone, since one approval holds for all. Whether the platform waits for this
        machine no more; if it still does, the log says why. Failures are tried again a few times. Raises nothing.
        """
        if self._session is None:
            return False
        task = self._spawn(self._approve(event_id))
        try:
            await asyncio.wait([task])
        finally:
            task.cancel()
        return not task.cancelled() and task.result()

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _ask_on(self, about: str, ask: Callable[[], Coroutine[Any, Any, bool]], backoff: Backoff) -> None:
        """Ask until `ask` says that this was all."""
        clock = asyncio.get_running_loop().time
        more = True
        while more:
            try:
                more = await ask()
            except Exception as error:  # noqa: BLE001 -- a defect must not end the watch; it is logged as one
                why = str(error) or type(error).__name__
                if not isinstance(error, CallFailed) and why != backoff.error:
                    self._log.error("internal error in a question to Azure", about=about, exc_info=True)
                if backoff.failed(why, clock()):
                    self._log.warning("Azure metadata service fails", about=about, error=why)
            else:
                after = backoff.succeeded(clock())
                if after is not None:
                    self._log.warning("Azure metadata service answers again", about=about, seconds=round(after, 3))
            if more:
                await asyncio.sleep(backoff.pause())

    async def _poll(self) -> bool:
        try:
            answer = await self._call("GET", EVENTS, self._timing.first if self._first else self._timing.call)
        except NoAnswer:
            self._first = False  # it has had the time for it
            raise
        self._first = False
        now, told_at = asyncio.get_running_loop().time(), self._told_at(answer.date)
        try:
            document = parse(_decode(answer.body), self._own_name, told_at)
        except MalformedDocument as error:
            raise CallFailed(f"the document {error}") from None
        if document.problems and document.problems != self._problems:
            self._log.warning("scheduled events not understood", problems=document.problems[:MOST_PROBLEMS])
        self._problems = document.problems
        if self._own_name:
            for action in self._watchlist.update(document, now):
                self._tell(action)
        return True

    def _told_at(self, date: str | None) -> float:
        """When an answer was given, by the clock that its times were made with if it says so."""
        told_at = service_time(date)
        timeless = told_at is None
        if timeless and not self._timeless:
            self._log.warning("Azure metadata service does not say what time it is, the local clock is used", date=date)
        self._timeless = timeless
        return time.time() if told_at is None else told_at

    async def _find_name(self) -> bool:
        """Of a scale set's instance it is like `relays_12` ("Terminate notification for ... scale set instances")."""
        compute = _decode((await self._call("GET", COMPUTE, self._timing.call)).body)
        name = compute.get("name") if isinstance(compute, dict) else None
        if not isinstance(name, str) or not 0 < len(name) <= MOST_ID or not name.isprintable():
            raise CallFailed("the answer has no name in it")
        self._own_name = name
        self._log.info("own name found", name=name)
        return False

    def _tell(self, action: Action) -> None:
        notice = action.notice
        (self._log.info if action.do is Do.NOTE else self._log.warning)(
            MESSAGES[action.do],
            event_id=notice.event_id,
            kind=notice.kind,
            status=notice.status,
            seconds_left=round(notice.seconds_left, 3),
            concerns_only_this_vm=notice.concerns_only_this_vm,
            source=notice.source,
            description=notice.description,
        )
        told = self._told.get(action.do)
        if told is not None:
            try:
                told(notice)
            except Exception:  # noqa: BLE001 -- a fault in what it does is no end of the watch
                self._log.error("internal error upon a scheduled event", event_id=notice.event_id, exc_info=True)

    async def _approve(self, event_id: str) -> bool:
        body = json.dumps({"StartRequests": [{"EventId": event_id}]}).encode()
        approving = Backoff(self._timing.poll, self._timing.poll_most)
        while approving.failures < self._timing.tries:
            if approving.failures:
                await asyncio.sleep(approving.pause())
            notice = self._watchlist.get(event_id, asyncio.get_running_loop().time())
            if notice is None or not notice.concerns_only_this_vm:
                why = "it is not under way" if notice is None else "it concerns other machines as well"
                self._log.info("scheduled event not approved", event_id=event_id, reason=why)
                return False
            if notice.status != SCHEDULED:
                return True
            try:
                await self._call("POST", EVENTS, self._timing.call, body)
            except Exception as error:  # noqa: BLE001 -- as in `_ask_on`
                if not isinstance(error, CallFailed):
                    self._log.error("internal error in a question to Azure", about="approval", exc_info=True)
                approving.failed(str(error), 0.0)  # it is only counted
                self._log.warning("cannot approve a scheduled event", event_id=event_id, error=str(error))
            else:
                self._log.info("scheduled event approved", event_id=event_id)
                return True
        return False

    async def _call(self, method: str, path: str, timeout: float, body: bytes | None = None) -> _Answer:
        """Raises CallFailed."""
        assert self._session is not None
        timeouts = aiohttp.ClientTimeout(total=timeout, sock_connect=self._timing.connect)
        headers = {"Content-Type": "application/json"} if body is not None else None
        try:
            async with self._session.request(
                method, self._url + path, data=body, headers=headers, timeout=timeouts, allow_redirects=False
            ) as response:
                answer = bytearray()
                async for chunk in response.content.iter_any():
                    answer += chunk
                    if len(answer) > MOST_BYTES:
                        raise CallFailed(f"the answer is longer than {MOST_BYTES} bytes")
                if response.status != 200:
                    raise CallFailed(_text(f"HTTP status {response.status}: {answer.decode('utf-8', 'replace')}"))
                return _Answer(bytes(answer), response.headers.get("Date"))
        except aiohttp.ConnectionTimeoutError:
            raise CallFailed(f"no connection in {self._timing.connect:g} s") from None
        except TimeoutError:
            raise NoAnswer(f"no answer in {timeout:g} s") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno is not None and error.errno > 0:
                raise CallFailed(reason(error)) from None
            raise CallFailed(_text(str(error) or type(error).__name__)) from None


def _decode(body: bytes) -> object:
    try:
        decoded: object = json.loads(body)
    except (ValueError, RecursionError):
        raise CallFailed(f"not JSON: {_text(body[:MOST_TEXT].decode('utf-8', 'replace'))!r}") from None
    return decoded


def _text(text: str) -> str:
    """For the log, on one line and bounded."""
    return "".join(letter if letter.isprintable() else " " for letter in text[:MOST_TEXT]).strip()
