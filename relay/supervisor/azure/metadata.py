"""The client of Azure's instance metadata service: polls scheduled events for this machine once a second.

`core.scheduled_events` interprets the documents; this module makes the calls, paces them and calls the callbacks. The
service may be slow, fail, answer nonsense or be absent: the start and the end of such a failure are logged, and polling
never stops.

Sources: learn.microsoft.com, "Scheduled Events for Linux VMs" and "Azure Instance Metadata Service". The service allows
5 requests per second from all callers on a machine together.
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
from relay.supervisor.service_log import ServiceLog
from relay.supervisor.tasks import keep_running

EVENTS = "/metadata/scheduledevents?api-version=2020-07-01"
COMPUTE = "/metadata/instance/compute?api-version=2021-02-01"
MAX_BYTES = 256 * 1024  # in an answer; a document has some hundred bytes per event
MAX_TEXT = 200  # characters of an error text
MAX_PROBLEMS = 5  # unreadable events of a document that one log line names

MESSAGES = {
    Do.BEGIN: "scheduled event",
    Do.UPDATE: "scheduled event comes earlier",
    Do.CANCELLED: "scheduled event cancelled",
    Do.COMPLETED: "scheduled event over",
    Do.NOTE: "scheduled event noted",
}

Callback = Callable[[Notice], None]


@dataclass(frozen=True, slots=True)
class Timing:
    """Poll intervals and timeouts in seconds. Only tests use other values than these."""

    poll: float = 1.0  # from the end of a call to the next, as the source recommends
    poll_most: float = 10.0  # upper limit of that interval, which each failure in a row doubles
    connect: float = 5.0  # timeout of a connect
    call: float = 5.0  # timeout of a call
    first: float = 150.0  # timeout of the first call, which turns the events on for this machine: "up to two minutes"
    tries: int = 5  # attempts to approve an event


class ServiceState(NamedTuple):
    """The client's state for /status. Ages are in seconds."""

    ok: bool | None  # whether the last poll succeeded; None before the first has ended
    answer_age: float | None  # of the last good answer
    failing_seconds: float | None  # since the first failure of the current run
    error: str  # of the last poll
    own_name: str  # this machine's name in events; empty while unknown
    own_name_error: str
    events: tuple[Notice, ...]  # those that concern this machine


class CallFailed(Exception):
    """A call failed; the text says why."""


class NoAnswer(CallFailed):
    """A call had no answer in time."""


class _Answer(NamedTuple):
    """A response with status 200."""

    body: bytes
    date: str | None  # its Date field


class ScheduledEvents:
    """Follows the scheduled events of this machine at `metadata_url` (scheme and authority).

    The time left before an event is computed by the service's clock, as this machine's may be minutes off. Callbacks
    run in the event loop, with seconds_left as of now: `begin` once for each event that ends connections, `updated`
    when it comes earlier than announced, `cancelled` when it will not come, `completed` when it is over and this
    machine still there. `begin` waits while an event is more than `ahead` seconds away, as failing hardware is
    announced days ahead. `own_name` is this machine's name in events; if empty, the service is asked for it.
    """

    def __init__(
        self,
        metadata_url: str,
        begin: Callback,
        cancelled: Callback,
        log: ServiceLog,
        *,
        updated: Callback | None = None,
        completed: Callback | None = None,
        ahead: float = math.inf,
        own_name: str = "",
        timing: Timing | None = None,
    ) -> None:
        self._url = metadata_url.rstrip("/")
        self._callbacks = {Do.BEGIN: begin, Do.UPDATE: updated, Do.CANCELLED: cancelled, Do.COMPLETED: completed}
        self._log = log
        self._timing = timing if timing is not None else Timing()
        self._own_name = own_name
        self._watchlist = Watchlist(ahead)
        self._problems: list[str] = []
        self._no_date = False  # the last answer had no credible Date
        self._first = True  # the first call, which turns the events on, has not ended yet
        self._polls = Backoff(self._timing.poll, self._timing.poll_most)
        self._name_calls = Backoff(self._timing.poll, self._timing.poll_most, steady=1)
        self._session: aiohttp.ClientSession | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self) -> None:
        """Start polling. Called once, from the event loop."""
        self._session = aiohttp.ClientSession(
            headers={"Metadata": "true", "Accept-Encoding": "identity"},
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,  # so that MAX_BYTES limits what is read
            trust_env=False,  # no proxy: the service is the host's own and refuses proxied requests
        )
        polls = functools.partial(self._repeat, "scheduled events", self._poll, self._polls)
        self._spawn(keep_running("scheduled events", polls, self._log))
        if not self._own_name:
            name_calls = functools.partial(self._repeat, "own name", self._find_name, self._name_calls)
            self._spawn(keep_running("own name", name_calls, self._log))

    async def stop(self) -> None:
        """Cancel all calls without waiting for their answers; a pending `approve` returns False."""
        session, self._session = self._session, None
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if session is not None:
            await session.close()

    @property
    def state(self) -> ServiceState:
        """The current state."""
        now = asyncio.get_running_loop().time()
        polls = self._polls
        return ServiceState(
            ok=polls.ok,
            answer_age=None if polls.good_at is None else now - polls.good_at,
            failing_seconds=now - polls.failing_since if polls.failures else None,
            error=polls.error,
            own_name=self._own_name,
            own_name_error=self._name_calls.error,
            events=self._watchlist.events(now),
        )

    async def approve(self, event_id: str) -> bool:
        """Approve an event: the platform may begin it now instead of waiting for its time.

        Only an event for this machine alone is approved, since one approval holds for all machines. Failed calls are
        repeated a few times. Returns True if the platform no longer waits for this machine; else the log says why.
        Raises nothing.
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

    async def _repeat(self, about: str, call: Callable[[], Coroutine[Any, Any, bool]], backoff: Backoff) -> None:
        """Repeat `call` until it returns False, with backoff after failures."""
        clock = asyncio.get_running_loop().time
        more = True
        while more:
            try:
                more = await call()
            except Exception as error:  # noqa: BLE001 -- a defect must not end the polling; it is logged as one
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
            self._first = False  # the service has had the time to turn the events on
            raise
        self._first = False
        now, answered_at = asyncio.get_running_loop().time(), self._answered_at(answer.date)
        try:
            document = parse(_decode(answer.body), self._own_name, answered_at)
        except MalformedDocument as error:
            raise CallFailed(f"the document {error}") from None
        if document.problems and document.problems != self._problems:
            self._log.warning("scheduled events not understood", problems=document.problems[:MAX_PROBLEMS])
        self._problems = document.problems
        if self._own_name:
            for action in self._watchlist.update(document, now):
                self._report(action)
        return True

    def _answered_at(self, date: str | None) -> float:
        """The answer's time in seconds since 1970: its Date, or without a credible one the local clock's."""
        answered_at = service_time(date)
        no_date = answered_at is None
        if no_date and not self._no_date:
            self._log.warning("Azure metadata service does not say what time it is, the local clock is used", date=date)
        self._no_date = no_date
        return time.time() if answered_at is None else answered_at

    async def _find_name(self) -> bool:
        """Look up this machine's name; a scale set names its instances like `relays_12`.

        Source: "Terminate notification for Azure Virtual Machine Scale Set instances".
        """
        compute = _decode((await self._call("GET", COMPUTE, self._timing.call)).body)
        name = compute.get("name") if isinstance(compute, dict) else None
        if not isinstance(name, str) or not 0 < len(name) <= MOST_ID or not name.isprintable():
            raise CallFailed("the answer has no name in it")
        self._own_name = name
        self._log.info("own name found", name=name)
        return False

    def _report(self, action: Action) -> None:
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
        callback = self._callbacks.get(action.do)
        if callback is not None:
            try:
                callback(notice)
            except Exception:  # noqa: BLE001 -- a defect in a callback must not end the polling
                self._log.error("internal error upon a scheduled event", event_id=notice.event_id, exc_info=True)

    async def _approve(self, event_id: str) -> bool:
        body = json.dumps({"StartRequests": [{"EventId": event_id}]}).encode()
        attempts = Backoff(self._timing.poll, self._timing.poll_most)
        while attempts.failures < self._timing.tries:
            if attempts.failures:
                await asyncio.sleep(attempts.pause())
            notice = self._watchlist.get(event_id, asyncio.get_running_loop().time())
            if notice is None or not notice.concerns_only_this_vm:
                why = "it is not under way" if notice is None else "it concerns other machines as well"
                self._log.info("scheduled event not approved", event_id=event_id, reason=why)
                return False
            if notice.status != SCHEDULED:
                return True
            try:
                await self._call("POST", EVENTS, self._timing.call, body)
            except Exception as error:  # noqa: BLE001 -- as in `_repeat`
                if not isinstance(error, CallFailed):
                    self._log.error("internal error in a question to Azure", about="approval", exc_info=True)
                attempts.failed(str(error), 0.0)  # only the count is used, not the time
                self._log.warning("cannot approve a scheduled event", event_id=event_id, error=str(error))
            else:
                self._log.info("scheduled event approved", event_id=event_id)
                return True
        return False

    async def _call(self, method: str, path: str, timeout: float, body: bytes | None = None) -> _Answer:
        """Make one call. Raises CallFailed."""
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
                    if len(answer) > MAX_BYTES:
                        raise CallFailed(f"the answer is longer than {MAX_BYTES} bytes")
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
        raise CallFailed(f"not JSON: {_text(body[:MAX_TEXT].decode('utf-8', 'replace'))!r}") from None
    return decoded


def _text(text: str) -> str:
    """`text` for a log line: bounded, and without control characters."""
    return "".join(letter if letter.isprintable() else " " for letter in text[:MAX_TEXT]).strip()
