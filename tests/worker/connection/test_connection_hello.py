"""A connection that is asked for its TLS hello first: what is let through, and what is passed on."""

from __future__ import annotations

import pytest

from relay.core import counters
from relay.core.client_hello import LIMIT
from relay.engines.contract import Close, Dial, Event, Preread, Pump
from relay.outcome import Outcome
from tests.core.hellos import PADDING, extension, hello, records, server_name
from tests.worker.connection.world import LITERAL, World

HELLO = records(hello(server_name(b"hub.example")))


def test_a_hello_that_comes_in_pieces_is_passed_on_whole() -> None:
    world = World([LITERAL], sni=("hub.example",))
    connection = world.accept()
    for end in (1, 7, len(HELLO) - 1):
        assert world.send(connection, Event.PREREAD, HELLO[:end]) == world.last[connection]
        assert isinstance(world.last[connection], Preread)
    assert isinstance(world.send(connection, Event.PREREAD, HELLO + b"more"), Dial)
    assert world.send(connection, Event.CONNECTED, None) == Pump(HELLO + b"more")
    start = world.layout.listener(0)
    assert world.block[start + counters.BYTES_UP] == len(HELLO) + 4, "counted once"


@pytest.mark.parametrize(
    "name", [b"", None, b"hub.example.evil.example", b"xhub.example", b"example", b"devices.example"]
)
def test_other_names_are_refused(name: bytes | None) -> None:
    world = World([LITERAL], sni=("hub.example", "*.devices.example"))
    connection = world.accept()
    extensions = None if name is None else b"" if not name else server_name(name)
    assert world.send(connection, Event.PREREAD, records(hello(extensions))) == Close(True, True)
    assert world.outcome(connection) is Outcome.REFUSED_SNI


@pytest.mark.parametrize("name", [b"hub.example", b"HUB.Example.", b"a.devices.example", b"a.b.devices.example"])
def test_names_that_are_let_through(name: bytes) -> None:
    world = World([LITERAL], sni=("hub.example", "*.devices.example"))
    connection = world.accept()
    assert isinstance(world.send(connection, Event.PREREAD, records(hello(server_name(name)))), Dial)


def test_a_hello_that_does_not_fit_is_refused() -> None:
    """Its message alone would fit, its record does not; an engine must not be asked for more than there may be."""
    world = World([LITERAL], sni=("hub.example",))
    connection = world.accept()
    padding = LIMIT - 4 - len(hello(server_name(b"hub.example") + extension(PADDING, b"")))
    data = records(hello(server_name(b"hub.example") + extension(PADDING, bytes(padding))))
    assert len(data) > LIMIT
    assert isinstance(world.send(connection, Event.PREREAD, data[: LIMIT - 1]), Preread)
    assert world.send(connection, Event.PREREAD, data[:LIMIT]) == Close(True, True)
    assert world.outcome(connection) is Outcome.REFUSED_TLS
