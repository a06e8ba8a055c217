"""The admin port and the health port: what people, probes and Prometheus ask the relay over HTTP.

Only the supervisor serves them, from the numbers in the shared table; a worker is never asked, so a worker that hangs
cannot make a probe wait, only fail. The health port may be open to the load balancer's probes: it knows the three
health paths and nothing else. How both are served is in `http_server`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aiohttp import web
from prometheus_client import CollectorRegistry

from relay.exposition import expose
from relay.plan import StartError
from relay.status import Status

INDEX = """relay admin port

GET /livez     200 while every worker's loop answers, else 503
GET /readyz    200 while new connections are welcome, else 503 with the reason
GET /healthz   Azure Application Health, rich states: {"ApplicationHealthState": "Healthy" | "Unhealthy"}
GET /metrics   Prometheus
GET /status    JSON, what `relay status` shows
POST /drain    go out of service: not ready, then no new connections, established ones closed evenly over drain.window
POST /undrain  back to service
POST /reload   read the settings again; 409 and what is in the way if they are not put into effect
"""

Reply = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Orders:
    """What one may tell the relay to do over the admin port.

    `drain` gets the reason; `undrain` gives why it is not done, or nothing, and raises StartError; `reload` gets the
    reason and gives what is in the way.
    """

    drain: Callable[[str], None]
    undrain: Callable[[], str]
    reload: Callable[[str], list[str]]


def health_app(status: Status) -> web.Application:
    """The three health paths."""
    app = web.Application(client_max_size=0)
    _add_health(app, status)
    return app


def admin_app(status: Status, registry: CollectorRegistry, orders: Orders) -> web.Application:
    """Everything that one may ask, and order."""

    async def metrics(request: web.Request) -> web.StreamResponse:
        # A header may come in several lines, which are one list (RFC 9110, section 5.3).
        body, media_type = expose(registry, ",".join(request.headers.getall("Accept", [])))
        return web.Response(body=body, headers={"Content-Type": media_type, "Vary": "Accept"})

    async def show(_request: web.Request) -> web.StreamResponse:
        return web.json_response(status.snapshot())

    async def index(_request: web.Request) -> web.StreamResponse:
        return web.Response(text=INDEX)

    async def drain(_request: web.Request) -> web.StreamResponse:
        orders.drain("admin")
        return web.json_response(status.snapshot()["drain"], status=202)

    async def undrain(_request: web.Request) -> web.StreamResponse:
        try:
            problem = orders.undrain()
        except StartError as error:
            problem = "; ".join(error.problems)
        return web.Response(status=409 if problem else 200, text=f"{problem or 'ok'}\n")

    async def reload(_request: web.Request) -> web.StreamResponse:
        problems = orders.reload("admin")
        return web.Response(status=409 if problems else 200, text="\n".join([*problems, ""]) if problems else "ok\n")

    app = web.Application(client_max_size=65536, middlewares=[_own_pages_only])
    _add_health(app, status)
    app.router.add_post("/drain", drain)
    app.router.add_post("/undrain", undrain)
    app.router.add_post("/reload", reload)
    app.router.add_get("/metrics", metrics)
    app.router.add_get("/status", show)
    app.router.add_get("/", index)
    return app


@web.middleware
async def _own_pages_only(request: web.Request, handler: Reply) -> web.StreamResponse:
    """A browser sends a form to any address for any page: orders from other pages than this port's are refused."""
    origin = request.headers.get("Origin")
    if request.method == "POST" and origin is not None and origin.partition("://")[2] != request.host:
        return web.Response(status=403, text="orders from a page of another site are refused\n")
    return await handler(request)


def _add_health(app: web.Application, status: Status) -> None:
    async def livez(_request: web.Request) -> web.StreamResponse:
        live = status.live()
        return web.Response(status=200 if live.ok else 503, text=f"{live.reason or 'ok'}\n")

    async def readyz(_request: web.Request) -> web.StreamResponse:
        ready = status.ready()
        return web.Response(status=200 if ready.ok else 503, text=f"{ready.reason or 'ok'}\n")

    async def healthz(_request: web.Request) -> web.StreamResponse:
        # Rich states: the body says it, and only with a 2xx status; anything else counts as Unknown
        # (learn.microsoft.com, virtual-machines/extensions/health-extension). A draining instance is healthy.
        state = "Healthy" if status.live().ok else "Unhealthy"
        return web.json_response({"ApplicationHealthState": state})

    app.router.add_get("/livez", livez)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/healthz", healthz)
