"""What answers on the health port of a machine that has no valid settings yet, and so no relay.

/healthz has the state Unhealthy with the reason, /readyz is 503 with the same reason, and /livez is 200. The states are
those of Azure's Application Health extension, which reads the body of a 200 only and ignores other fields of it
(Azure/applicationhealth-extension-linux, plugins/apphealth). The port is the one of relay's own, with the same limits,
and is given up before relay starts.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from aiohttp import web

from relay.address import parse_hostport
from relay.commands.fetch_settings.attempt import Outcome
from relay.core.backoff import Backoff
from relay.supervisor.admin.server import HEALTH, HttpServer

FIRST, LONGEST = 1.0, 15.0  # seconds from an attempt to the next; doubled each time
NOT_YET = "no valid settings yet"


class Responder:
    """Answers the health paths at `bind` (a value of health.bind; empty: not at all) with a reason."""

    def __init__(self, bind: str) -> None:
        self._bind = bind
        self._server: HttpServer | None = None
        self.reason = NOT_YET

    async def start(self) -> str:
        """Listen, unless it does; returns why that is not possible now, or an empty string."""
        if self._server is not None or not self._bind:
            return ""
        host, port = parse_hostport(self._bind, allow_name=False)
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setblocking(False)
            sock.bind((host, port))
            server = HttpServer(self._app(), sock, HEALTH, "health")
            await server.start()
        except OSError as error:
            sock.close()
            return f"health.bind: {self._bind}: {(error.strerror or str(error)).lower()}"
        self._server = server
        return ""

    async def stop(self) -> None:
        """Give the port up."""
        if self._server is not None:
            await self._server.stop()
            self._server = None

    def _app(self) -> web.Application:
        async def livez(_request: web.Request) -> web.StreamResponse:
            return web.Response(text="ok\n")

        async def readyz(_request: web.Request) -> web.StreamResponse:
            return web.Response(status=503, text=f"{self.reason}\n")

        async def healthz(_request: web.Request) -> web.StreamResponse:
            source = {"up": False, "error": self.reason}
            return web.json_response({"ApplicationHealthState": "Unhealthy", "settings_source": source})

        app = web.Application(client_max_size=0)
        app.router.add_get("/livez", livez)
        app.router.add_get("/readyz", readyz)
        app.router.add_get("/healthz", healthz)
        return app


async def wait_for_settings(bind: str, attempt: Callable[[], Outcome], say: Callable[[str], None]) -> Outcome:
    """Attempt until there are valid settings, and answer on the health port meanwhile; the last attempt's outcome.

    `say` gets each reason once.
    """
    responder, backoff, said = Responder(bind), Backoff(FIRST, LONGEST), ""
    try:
        while True:
            problem = await responder.start()
            outcome = await asyncio.to_thread(attempt)
            if outcome.settings is not None:
                return outcome
            reason = "; ".join(outcome.problems)
            responder.reason = f"{NOT_YET}: {reason}"
            lines = "\n".join([*outcome.problems, *([problem] if problem else [])])
            if lines != said:
                say(lines)
            said = lines
            backoff.failed(reason, 0.0)  # only the count is used, not the time
            await asyncio.sleep(backoff.pause())
    finally:
        await responder.stop()
