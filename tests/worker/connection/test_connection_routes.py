"""Routes of a listener, without an engine: to which upstream a connection is dialled, and what is counted."""

from __future__ import annotations

import pytest

from relay.core import counters, proxy_header
from relay.core.client_hello import LIMIT
from relay.engines.contract import Action, Close, Dial, Event, Preread, Pump, Wait
from relay.ipc.worker_spec import NO_BUCKET, ProxyProtocol, RouteSpec
from relay.outcome import Outcome
from tests.core.hellos import hello, records, server_name
from tests.worker.connection.world import LITERAL, World

OWN = (LITERAL[1], LITERAL[2])
FIRST, SECOND, DEVICE = ("203.0.113.1", 1), ("203.0.113.2", 2), ("203.0.113.3", 3)
BACKUP = ("203.0.113.9", 9)
HTTP = b"GET / HTTP/1.1\r\n"


def route(name: str, number: int, *sni: str, at: tuple[str, int], backup: tuple[str, int] | None = None) -> RouteSpec:
    spare = ((4, *backup),) if backup else ()
    return RouteSpec(number, name, sni, ((number + 1, *at),), spare, NO_BUCKET, False)


ROUTES = (
    route("first", 0, "first.example", at=FIRST),
    route("second", 1, "*.example", at=SECOND),
    RouteSpec(2, "device", ("device.other",), ((3, "device.other", 3),), (), NO_BUCKET, True),
)


def asking(name: str | None) -> bytes:
    return records(hello(None if name is None else server_name(name.encode())))


def begin(own: bool = True, sni: tuple[str, ...] = (), routes: tuple[RouteSpec, ...] = ROUTES) -> World:
    return World([LITERAL] if own else [], {"device.other": ()}, sni=sni, routes=routes)


def dialled(action: Action) -> tuple[str, int] | None:
    return (action.address[0], action.address[1]) if isinstance(action, Dial) else None


def led(world: World, data: bytes, event: Event = Event.PREREAD) -> tuple[str, int] | Outcome:
    """Where a client that sends this is connected to, or how its connection ends."""
    connection = world.accept()
    action = world.send(connection, event, data)
    return dialled(action) or world.outcome(connection)


@pytest.mark.parametrize(
    ("name", "to"),
    [("first.example", FIRST), ("x.first.example", SECOND), ("y.example", SECOND), ("example", OWN), (None, OWN)],
)
def test_the_name_decides(name: str | None, to: tuple[str, int]) -> None:
    assert led(begin(), asking(name)) == to


@pytest.mark.parametrize("data", [HTTP, b"\x16\x03\x01\x00\x04\x02\x00\x00\x00", asking("a") + bytes(LIMIT), b"\0"])
def test_what_is_no_tls_goes_to_the_listeners_own_upstream_with_all_of_its_bytes(data: bytes) -> None:
    world = begin()
    connection = world.accept()
    assert dialled(world.send(connection, Event.PREREAD, data)) == OWN
    assert world.send(connection, Event.CONNECTED) == Pump(data)


@pytest.mark.parametrize("event", [Event.PREREAD_ENDED, Event.PREREAD_TIMEOUT])
@pytest.mark.parametrize("data", [b"", asking("first.example")[:60]], ids=["nothing", "a part of a hello"])
def test_a_hello_that_does_not_come_goes_there_too(event: Event, data: bytes) -> None:
    world = begin()
    connection = world.accept()
    assert dialled(world.send(connection, event, data)) == OWN
    assert world.send(connection, Event.CONNECTED) == Pump(data)


@pytest.mark.parametrize(("own", "sni"), [(False, ()), (True, ("only.net", "*.first.example"))], ids=["no own", "sni"])
def test_what_no_route_matches_is_refused(own: bool, sni: tuple[str, ...]) -> None:
    world = begin(own, sni)
    assert led(world, asking("first.example")) == FIRST
    assert led(world, asking("a.first.example")) == SECOND, "routes come before the names of sni"
    assert led(world, asking("other.net")) == Outcome.REFUSED_SNI
    assert led(world, asking(None)) == Outcome.REFUSED_SNI
    assert led(world, HTTP) == Outcome.REFUSED_TLS
    assert led(world, b"", Event.PREREAD_TIMEOUT) == Outcome.CLIENT_HELLO_TIMEOUT
    assert led(world, b"", Event.PREREAD_ENDED) == Outcome.CLIENT_HELLO_ABORT
    if own:
        assert led(world, asking("only.net")) == OWN


def test_an_optional_route_is_on_while_its_name_resolves() -> None:
    world = begin()
    assert led(world, asking("device.other")) == OWN
    world.upstreams.resolved("device.other", (DEVICE[0],))
    assert led(world, asking("device.other")) == DEVICE
    world.upstreams.resolved("device.other", ())
    assert led(world, asking("device.other")) == OWN
    world.upstreams.resolved("device.other", (DEVICE[0],))
    world.upstreams.bar([DEVICE])
    assert led(world, asking("device.other")) == OWN, "an address that is never dialled is none"


def test_while_all_routes_are_off_nothing_is_read() -> None:
    world = begin(routes=(RouteSpec(0, "device", ("device.other",), ((3, "device.other", 3),), (), NO_BUCKET, True),))
    assert dialled(world.last[world.accept()]) == OWN
    world.upstreams.resolved("device.other", (DEVICE[0],))
    connection = world.accept()
    assert isinstance(world.last[connection], Preread)
    world.upstreams.resolved("device.other", ())
    assert dialled(world.send(connection, Event.PREREAD, asking("device.other"))) == OWN, "it had begun to preread"


def test_a_route_whose_name_was_not_looked_up_yet_waits_for_the_answer() -> None:
    world = World(
        [LITERAL], routes=(RouteSpec(0, "r", ("r.example",), ((1, "hub.example", 1),), (), NO_BUCKET, False),)
    )
    connection = world.accept()
    assert isinstance(world.send(connection, Event.PREREAD, asking("r.example")), Wait)
    world.answer(FIRST[0])
    assert dialled(world.last[connection]) == FIRST


BACKED = (route("r", 0, "r.example", at=FIRST, backup=BACKUP),)


def test_the_backup_is_used_only_while_every_upstream_is_down() -> None:
    world = begin(routes=BACKED)
    assert led(world, asking("r.example")) == FIRST
    world.upstreams.health(1, FIRST, up=False)
    before = world.accept()
    assert dialled(world.send(before, Event.PREREAD, asking("r.example"))) == BACKUP
    world.send(before, Event.CONNECTED)
    world.upstreams.health(1, FIRST, up=True)
    assert led(world, asking("r.example")) == FIRST
    assert world.send(before, Event.FINISHED) == Close(), "the connection to the backup had stayed"
    world.upstreams.health(1, FIRST, up=False)
    world.upstreams.health(4, BACKUP, up=False)
    assert led(world, asking("r.example")) == FIRST, "the checks may be wrong"


def test_a_name_that_does_not_resolve_is_down() -> None:
    spec = RouteSpec(0, "r", ("r.example",), ((1, "hub.example", 1),), ((4, *BACKUP),), NO_BUCKET, False)
    world = World([LITERAL], routes=(spec,))
    connection = world.accept()
    assert isinstance(world.send(connection, Event.PREREAD, asking("r.example")), Wait), "not known yet"
    world.answer()
    assert dialled(world.last[connection]) == BACKUP
    world.upstreams.resolved("hub.example", (FIRST[0],))
    assert led(world, asking("r.example")) == FIRST


def test_what_is_counted_for_a_route() -> None:
    world = begin()
    data = asking("first.example")
    connection = world.accept()
    world.send(connection, Event.PREREAD, data)
    world.send(connection, Event.CONNECTED)
    connection.moved(len(data) + 10, 20)
    connection.end(Event.FINISHED, None, len(data) + 11, 22)
    assert led(world, asking("first.example")) == FIRST
    start = world.layout.route(0)
    assert world.block[start : start + counters.ROUTE_OUTCOME] == [2, 2 * len(data) + 11, 22]
    assert world.block[start + counters.ROUTE_OUTCOME + Outcome.OK.index] == 1
    assert counters.on_route(world.layout, world.block, 0) == 1
    listener = world.layout.listener(0)
    assert world.block[listener + counters.BYTES_UP] == 2 * len(data) + 11
    assert not any(world.block[world.layout.route(1) : world.layout.route(3)])


@pytest.mark.parametrize("proxy", ["accept", "require"])
def test_a_header_may_come_first(proxy: ProxyProtocol) -> None:
    world = World([LITERAL], {"device.other": ()}, routes=ROUTES, proxy=proxy, send_proxy=2)
    header = proxy_header.build(2, ("192.0.2.77", 1234), ("192.0.2.200", 8883))
    connection = world.accept()
    assert dialled(world.send(connection, Event.PREREAD, header + asking("first.example"))) == FIRST
    pumped = world.send(connection, Event.CONNECTED)
    assert pumped == Pump(header + asking("first.example")), "what it sends to the upstream says the same"
    assert led(world, header + HTTP) == OWN
    assert led(world, header, Event.PREREAD_TIMEOUT) == Outcome.CLIENT_HELLO_TIMEOUT, "the header was not looked at"
    waiting = world.accept()
    assert isinstance(world.send(waiting, Event.PREREAD, header), Preread)
    assert dialled(world.send(waiting, Event.PREREAD_TIMEOUT, header)) == OWN
    assert led(world, b"", Event.PREREAD_TIMEOUT) == Outcome.CLIENT_HELLO_TIMEOUT
