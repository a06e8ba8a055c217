"""The HTTP applications of the admin and health ports: paths, answers, and the check of browser requests.

The supervisor answers from the numbers in the shared table and never asks a worker, so a hung worker makes a probe fail
but never wait. The health port may be open to the load balancer's probes: it has the three health paths only. `server`
serves both.
"""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass

from aiohttp import web
from prometheus_client import CollectorRegistry

from relay.address import AddressError, format_hostport, parse_host, parse_hostport
from relay.supervisor.admin.exposition import expose
from relay.supervisor.admin.status import Status
from relay.supervisor.instance import StartError

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

HEALTH_PATHS = frozenset({"/livez", "/readyz", "/healthz"})
# A request with any of these comes from a browser. Programs send none unless told to; browsers send Accept-Language at
# least: Sec-Fetch-Site is for HTTPS and loopback only, and Origin is left out for a page's own site.
BROWSER_HEADERS = ("Origin", "Sec-Fetch-Site", "Referer", "Cookie", "Accept-Language")

Reply = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Orders:
    """The actions behind the admin port's POST paths.

    `drain` and `reload` get the reason for the log; `reload` returns the problems that prevented it. `undrain` returns
    why it is refused, or an empty string, and raises StartError.
    """

    drain: Callable[[str], None]
    undrain: Callable[[], str]
    reload: Callable[[str], Awaitable[list[str]]]


def health_app(status: Status) -> web.Application:
    """The application of the health port: the three health paths."""
    app = web.Application(client_max_size=0)
    _add_health(app, status)
    return app


def admin_app(
    status: Status,
    registry: CollectorRegistry,
    orders: Orders,
    hosts: Callable[[], Collection[str]],
    completed: Callable[[bytes], Awaitable[bytes]],
    whole_status: Callable[[], Awaitable[str]],
) -> web.Application:
    """The application of the admin port. `hosts` returns `admin.hosts`, which a reload may change.

    `completed` adds to a scrape of the registry what has to be rendered in parts; `whole_status` returns /status, JSON.
    """

    async def metrics(request: web.Request) -> web.StreamResponse:
        # Several lines of a header are one list (RFC 9110, section 5.3).
        body, media_type = expose(registry, ",".join(request.headers.getall("Accept", [])))
        body = await completed(body)
        return web.Response(body=body, headers={"Content-Type": media_type, "Vary": "Accept"})

    async def show(_request: web.Request) -> web.StreamResponse:
        return web.json_response(text=await whole_status())

    async def index(_request: web.Request) -> web.StreamResponse:
        return web.Response(text=INDEX)

    async def drain(_request: web.Request) -> web.StreamResponse:
        orders.drain("admin")
        return web.json_response(status.drain_state(), status=202)

    async def undrain(_request: web.Request) -> web.StreamResponse:
        try:
            problem = orders.undrain()
        except StartError as error:
            problem = "; ".join(error.problems)
        return web.Response(status=409 if problem else 200, text=f"{problem or 'ok'}\n")

    async def reload(_request: web.Request) -> web.StreamResponse:
        problems = await orders.reload("admin")
        return web.Response(status=409 if problems else 200, text="\n".join([*problems, ""]) if problems else "ok\n")

    @web.middleware
    async def own_pages_only(request: web.Request, handler: Reply) -> web.StreamResponse:
        problem = refusal(request.method, request.path, request.headers, hosts())
        return web.Response(status=403, text=f"{problem}\n") if problem else await handler(request)

    app = web.Application(client_max_size=65536, middlewares=[own_pages_only])
    _add_health(app, status)
    app.router.add_post("/drain", drain)
    app.router.add_post("/undrain", undrain)
    app.router.add_post("/reload", reload)
    app.router.add_get("/metrics", metrics)
    app.router.add_get("/status", show)
    app.router.add_get("/", index)
    return app


def refusal(method: str, path: str, headers: Mapping[str, str], hosts: Collection[str]) -> str:
    """Why a browser's request is refused; an empty string if it is allowed, or comes from no browser.

    A page of any site can make its visitor's browser send requests to an address that only the visitor reaches. If the
    page's own name is then pointed at that address (DNS rebinding), it can read the answers as well, for the browser
    takes this port for the page's own site. Such a page is recognised by its name in Host: a page can set neither Host
    nor Origin (Fetch standard, "forbidden request-header"). Programs may use any name.
    """
    browser = any(name in headers for name in BROWSER_HEADERS) or "Mozilla/" in headers.get("User-Agent", "")
    if not browser or path in HEALTH_PATHS:
        return ""
    host, origin = headers.get("Host", ""), headers.get("Origin")
    if not _own(host, hosts):
        return f"refused to a browser: Host {host!r} is no literal address, not localhost, and not in admin.hosts"
    if origin is not None and origin.lower() not in (f"http://{host.lower()}", f"https://{host.lower()}"):
        return f"refused to a page of another site: {origin!r}"
    elsewhere = headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin")
    # Following a link to this port is allowed; embedding it or scripting it is not.
    if elsewhere and (method != "GET" or headers.get("Sec-Fetch-Dest") != "document"):
        return "refused to a page of another site"
    return ""


def _own(host: str, hosts: Collection[str]) -> bool:
    """Whether a Host header, with or without a port, is a literal address, localhost, or one of `hosts`."""
    try:
        with contextlib.suppress(AddressError):  # raised if there is a port
            host = format_hostport(parse_host(host, allow_name=True), 80)
        name = parse_hostport(host, allow_name=True)[0].removesuffix(".")
    except AddressError:
        return False
    if name == "localhost" or name in hosts:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _add_health(app: web.Application, status: Status) -> None:
    async def livez(_request: web.Request) -> web.StreamResponse:
        live = status.live()
        return web.Response(status=200 if live.ok else 503, text=f"{live.reason or 'ok'}\n")

    async def readyz(_request: web.Request) -> web.StreamResponse:
        ready = status.ready()
        return web.Response(status=200 if ready.ok else 503, text=f"{ready.reason or 'ok'}\n")

    async def healthz(_request: web.Request) -> web.StreamResponse:
        # Rich states: the body has the state, with a 2xx status; any other answer counts as Unknown
        # (learn.microsoft.com, virtual-machines/extensions/health-extension). A draining instance is healthy.
        answer: dict[str, object] = {"ApplicationHealthState": "Healthy" if status.live().ok else "Unhealthy"}
        source = status.settings_source()
        if source is not None:  # Healthy all the same: one bad publish must not have a whole fleet replaced
            answer["settings_source"] = {"up": source["up"], "error": source["error"]}
        return web.json_response(answer)

    app.router.add_get("/livez", livez)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/healthz", healthz)
