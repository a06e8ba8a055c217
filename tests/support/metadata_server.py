"""A stand-in for Azure's instance metadata service on loopback: answers as scripted and records the requests.

    with MetadataServer() as server:                          # or: python -m tests.support.metadata_server PORT [SKEW]
        server.events.play(Answer(document(event("Preempt", "relays_12", left=30))))

As a process it prints its URL once it listens, and is controlled by HTTP on the same port:

    PUT /control/document    the events document served from now on, unchanged
    PUT /control/events      one answer or an array of answers, each an object with fields of `Answer`, all optional
    PUT /control/user_data   the text of the user data served from now on, not encoded yet
    PUT /control/compute     the same for the instance's own metadata, and PUT /control/approvals for approvals
    GET /control/requests    the requests: method, path, time on the monotonic clock
    GET /control/approved    ids of the approved events

Errors are as in learn.microsoft.com, "Azure Instance Metadata Service", and "Scheduled Events for Linux VMs".
"""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass
from email.utils import formatdate
from types import TracebackType
from typing import Any, NamedTuple

from aiohttp import web

Json = dict[str, Any]

EVENTS = "/metadata/scheduledevents"
COMPUTE = "/metadata/instance/compute"
USER_DATA = "/metadata/instance/compute/userData"
TOKEN = "/metadata/identity/oauth2/token"
VERSIONS = {
    EVENTS: {"2020-07-01", "2019-08-01"},
    COMPUTE: {"2021-02-01", "2021-01-01"},
    USER_DATA: {"2021-01-01"},
    TOKEN: {"2018-02-01"},
}
STARTING = 10.0  # seconds for the server's thread to start and to end
OWN = "relays_12"
VM_ID = "13f56399-bd52-4150-9748-7190aae1ff21"
ACCESS = "eyJ0eXAi.token.of.the.identity"  # the managed identity's access token


def http_date(left: float) -> str:
    """The time `left` seconds from now in the format of NotBefore: whole seconds, rounded down."""
    return formatdate(time.time() + left, usegmt=True)


def event(kind: str, *resources: str, left: float | None = 900.0, skew: float = 0.0, **fields: object) -> Json:
    """An event in the format of Azure's documentation. `left` is the seconds to its NotBefore; None: it has started.

    `skew` is how far the service's clock is ahead of this machine's, in seconds.
    """
    return {
        "EventId": "C7061BAC-AFDC-4513-B24B-AA5F13A16123",
        "EventStatus": "Started" if left is None else "Scheduled",
        "EventType": kind,
        "ResourceType": "VirtualMachine",
        "Resources": list(resources),
        "NotBefore": "" if left is None else http_date(left + skew),
        "Description": "",
        "EventSource": "Platform",
        "DurationInSeconds": -1,
        **fields,
    }


def document(*events: Json, incarnation: int = 1) -> Json:
    """A document with these events."""
    return {"DocumentIncarnation": incarnation, "Events": list(events)}


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer. `delay` is in seconds; `hang`: no answer is sent; `reset`: the connection is aborted instead.

    `date` replaces the Date field, which else has the service's clock; empty: no Date field.
    """

    document: object = None
    status: int = 200
    body: str | None = None  # replaces the document
    drip: bool = False  # after it, a byte now and then for ever
    location: str = ""  # Location field, for a redirect
    date: str | None = None
    delay: float = 0.0
    hang: bool = False
    reset: bool = False


class Request(NamedTuple):
    """One request to an endpoint."""

    method: str
    path: str
    at: float  # monotonic seconds
    headers: dict[str, str]
    body: str


class Endpoint:
    """The scripted answers of one endpoint: each is given once, and the last one is repeated."""

    def __init__(self, answer: Answer) -> None:
        self._answers = deque([answer])
        self.requests: list[Request] = []
        self.under_way = 0
        self.most_at_once = 0

    def play(self, *answers: Answer) -> None:
        self._answers = deque(answers)

    def next(self) -> Answer:
        return self._answers.popleft() if len(self._answers) > 1 else self._answers[0]


class MetadataServer:
    """The server, in a thread of its own. While it is closed, its port refuses connections and stays reserved.

    Its clock is `skew` seconds ahead of this machine's.
    """

    def __init__(self, port: int = 0, name: str = OWN, skew: float = 0.0) -> None:
        self.skew = skew
        self.events = Endpoint(Answer(document()))
        self.approvals = Endpoint(Answer({}))
        self._instance: Json = {
            "name": name, "vmScaleSetName": name.partition("_")[0], "osType": "Linux", "vmId": VM_ID, "tagsList": [],
        }  # fmt: skip
        self.compute = Endpoint(Answer(self._instance))
        self.user_data = Endpoint(Answer(body=""))
        self.token = Endpoint(Answer({"access_token": ACCESS, "expires_in": "86399", "token_type": "Bearer"}))
        self.approved: list[str] = []
        self._place = _socket(port)
        self.address: tuple[str, int] = self._place.getsockname()
        self.url = f"http://{self.address[0]}:{self.address[1]}"
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._runner: web.AppRunner | None = None

    def __enter__(self) -> MetadataServer:
        self._thread.start()
        self.open()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(STARTING)
        self._loop.close()
        self._place.close()

    def publish(self, text: str | bytes) -> None:
        """Set this machine's user data."""
        data = text.encode() if isinstance(text, str) else text
        self.user_data.play(Answer(body=base64.b64encode(data).decode()))

    def be(self, vm_id: str = VM_ID, **tags: str) -> None:
        """Give the machine another id, and these tags."""
        pairs = [{"name": name, "value": value} for name, value in tags.items()]
        self.compute.play(Answer({**self._instance, "vmId": vm_id, "tagsList": pairs}))

    def open(self) -> None:
        """Listen, for the first time or again after `close`."""
        asyncio.run_coroutine_threadsafe(self._open(), self._loop).result(STARTING)

    def close(self) -> None:
        """Abort all connections and refuse new ones."""
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(STARTING)

    async def _open(self) -> None:
        app = web.Application(client_max_size=1 << 20)
        app.router.add_get(EVENTS, self._events)
        app.router.add_post(EVENTS, self._approvals)
        app.router.add_get(COMPUTE, self._compute)
        app.router.add_get(USER_DATA, self._user_data)
        app.router.add_get(TOKEN, self._token)
        app.router.add_route("*", "/control/{name}", self._control)
        app.on_response_prepare.append(self._leave_out)
        # A client that disconnects during a delay cancels its handler, so `under_way` counts waiting clients only.
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.0)
        await self._runner.setup()
        sock = _socket(self.address[1])
        sock.listen(128)
        await web.SockSite(self._runner, sock).start()

    async def _close(self) -> None:
        runner, self._runner = self._runner, None
        if runner is not None:
            assert runner.server is not None
            for connection in runner.server.connections:
                connection.force_close()
            await runner.cleanup()

    # --- the service ----------------------------------------------------------------------------------------------

    async def _events(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(self.events, request)

    async def _compute(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(self.compute, request)

    async def _user_data(self, request: web.Request) -> web.StreamResponse:
        if request.query.get("format") != "text":
            return _bad("Bad request. The user data is text")
        return await self._answer(self.user_data, request)

    async def _token(self, request: web.Request) -> web.StreamResponse:
        if request.query.get("resource") != "https://storage.azure.com/":
            return _bad("invalid_resource")
        return await self._answer(self.token, request)

    async def _approvals(self, request: web.Request) -> web.StreamResponse:
        try:
            ids = [str(wanted["EventId"]) for wanted in json.loads(await request.text())["StartRequests"]]
        except (ValueError, KeyError, TypeError):
            return _bad("Bad request. The request could not be parsed")
        response = await self._answer(self.approvals, request)
        if response.status == 200:
            self.approved += ids
        return response

    async def _answer(self, endpoint: Endpoint, request: web.Request) -> web.StreamResponse:
        headers = dict(request.headers)
        endpoint.requests.append(
            Request(request.method, request.path_qs, time.monotonic(), headers, await request.text())
        )
        if request.headers.get("Metadata", "").lower() != "true" or "X-Forwarded-For" in request.headers:
            return _bad("Bad request. Required metadata header not specified")
        if request.query.getall("api-version", []) not in [[version] for version in VERSIONS[request.path]]:
            return _bad("Bad request. api-version is invalid or was not specified in the request")
        answer = endpoint.next()
        endpoint.under_way += 1
        endpoint.most_at_once = max(endpoint.most_at_once, endpoint.under_way)
        try:
            await (asyncio.Event().wait() if answer.hang else asyncio.sleep(answer.delay))
        finally:
            endpoint.under_way -= 1
        if answer.reset and request.transport is not None:
            request.transport.abort()
            return web.Response(status=500)  # never sent: the connection is gone
        text = answer.body if answer.body is not None else json.dumps(answer.document)
        fields = {"Location": answer.location} if answer.location else {}
        fields["Date"] = http_date(self.skew) if answer.date is None else answer.date
        if answer.drip:
            return await self._drip(request, text, fields)
        return web.Response(status=answer.status, text=text, content_type="application/json", headers=fields)

    @staticmethod
    async def _drip(request: web.Request, text: str, fields: dict[str, str]) -> web.StreamResponse:
        response = web.StreamResponse(headers=fields)
        await response.prepare(request)
        await response.write(text.encode())
        while True:
            await asyncio.sleep(0.1)
            await response.write(b"A")

    @staticmethod
    async def _leave_out(_request: web.Request, response: web.StreamResponse) -> None:
        """Remove an empty Date field. Without any field aiohttp would add one."""
        if not response.headers["Date"]:
            del response.headers["Date"]

    # --- control --------------------------------------------------------------------------------------------------

    async def _control(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        endpoints = {"events": self.events, "compute": self.compute, "approvals": self.approvals}
        if request.method == "PUT" and name == "document":
            self.events.play(Answer(await request.json()))
        elif request.method == "PUT" and name == "user_data":
            self.publish(await request.read())
        elif request.method == "PUT" and name in endpoints:
            told = await request.json()
            endpoints[name].play(*(Answer(**fields) for fields in (told if isinstance(told, list) else [told])))
        elif request.method == "GET" and name == "requests":
            asked = [*self.events.requests, *self.compute.requests, *self.approvals.requests, *self.user_data.requests]
            return web.json_response([[one.method, one.path, one.at] for one in asked])
        elif request.method == "GET" and name == "approved":
            return web.json_response(self.approved)
        else:
            return web.Response(status=404)
        return web.Response(status=204)


def _bad(text: str) -> web.Response:
    return web.json_response({"error": text}, status=400)


def _socket(port: int) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(("127.0.0.1", port))
    return sock


def main() -> None:
    with MetadataServer(int(sys.argv[1]), skew=float(sys.argv[2]) if len(sys.argv) > 2 else 0.0) as server:
        sys.stdout.write(f"{server.url}\n")
        sys.stdout.flush()
        threading.Event().wait()


if __name__ == "__main__":
    main()
