"""Listeners that come, go and move with a reload: whoever connects is served, or told that nobody is there."""

from __future__ import annotations

import pytest

from tests.e2e.lifecycle.test_reload import change, named, who
from tests.support.clients import connect, echoes, exchange
from tests.support.harness import Start
from tests.support.observe import tcp_ports, wait_until
from tests.support.programs import free_port
from tests.support.relay_toml import listener, settings
from tests.support.upstreams import Echo


def test_a_listener_comes_and_goes_while_another_serves(echo: Echo, start: Start) -> None:
    relay = start(settings(listener(echo.address)))
    address = f"127.0.0.1:{free_port()}"
    host, port = address.split(":")
    with connect(relay.address()) as old:
        assert exchange(old) == b"ping"
        assert change(relay, settings(listener(echo.address), listener(echo.address, name="more", bind=[address]))) == (
            200,
            "ok\n",
        )
        with connect((host, int(port))) as new:
            assert exchange(new) == exchange(old) == b"ping"
            assert [one["name"] for one in relay.status()["listeners"]] == ["main", "more"]
            assert change(relay, settings(listener(echo.address)))[0] == 200
            wait_until(lambda: not is_listened_on(int(port)), what="nobody listens there")
            with pytest.raises(ConnectionRefusedError):
                connect((host, int(port)))
            assert exchange(new) == exchange(old) == b"ping", "established connections stay"
            assert [(one["name"], one["bind"]) for one in relay.status()["listeners"]][1] == ("more", [])
        relay.wait_status(lambda status: len(status["listeners"]) == 1, what="its last connection gone")
        assert echoes(relay.address())
        assert relay.metrics().outcomes("more") == {"ok": 1}
    (first, second) = relay.told("reloaded", 2)
    assert first["changed"] == second["changed"] == ["listeners.more"]
    assert relay.metrics().by_label("relay_reloads_total", "result") == {"ok": 2, "failed": 0}


def test_a_listener_that_has_just_gone_can_come_back_at_once(echo: Echo, start: Start) -> None:
    relay = start(settings(listener(echo.address), workers=2))
    address = f"127.0.0.1:{free_port()}"
    host, port = address.split(":")
    both = settings(listener(echo.address), listener(echo.address, name="more", bind=[address]), workers=2)
    for _ in range(3):
        assert change(relay, both) == (200, "ok\n")
        assert change(relay, settings(listener(echo.address), workers=2)) == (200, "ok\n")
    assert change(relay, both) == (200, "ok\n")
    for _ in range(10):
        assert echoes((host, int(port)))


def test_an_address_may_become_another_one_of_the_same_port(echo: Echo, start: Start) -> None:
    """Of one address and of all there can be sockets at the same time."""
    port = free_port()
    texts = [settings(listener(echo.address, bind=[f"{host}:{port}"])) for host in ("0.0.0.0", "127.0.0.1")]
    relay = start(texts[0])
    with connect(("127.0.0.1", port)) as old:
        assert exchange(old) == b"ping"
        for text in (texts[1], texts[0], texts[1]):
            assert change(relay, text) == (200, "ok\n")
            for _ in range(3):
                assert echoes(("127.0.0.1", port))
        assert exchange(old) == b"ping"


def is_listened_on(port: int) -> bool:
    """Whether the kernel has a listener there (state 0A); to knock would be to be let in, perhaps."""
    return any(local == port for local, _ in tcp_ports("0A"))


def test_an_address_may_move_to_another_listener(start: Start) -> None:
    with named(b"first") as first, named(b"second") as second:
        address = f"127.0.0.1:{free_port()}"
        host, port = address.split(":")
        relay = start(settings(listener(first.address, name="a", bind=[address])))
        assert who((host, int(port))) == b"first"
        assert change(relay, settings(listener(second.address, name="b", bind=[address])))[0] == 200
        wait_until(lambda: who((host, int(port))) == b"second", what="the other listener")
    wait_until(lambda: relay.metrics().outcomes("b"), what="its account")


def test_more_listeners_than_there_is_room_for(echo: Echo, start: Start) -> None:
    relay = start(settings(listener(echo.address)))
    relay.expected_errors.add("reload failed")
    many = [listener(echo.address, name=f"n{number}") for number in range(17)]
    code, text = change(relay, settings(listener(echo.address), *many))
    assert (code, "restart relay" in text) == (409, True)
    assert change(relay, settings(listener(echo.address), *many[:16]))[0] == 200
    assert all(echoes(relay.address()) for _ in range(3))
