"""Two relays and one port: whoever comes second is told so, at a start, in a reload, and when it is put back."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.e2e.lifecycle.test_reload import change, named, who
from tests.support.clients import echoes
from tests.support.harness import Start
from tests.support.observe import wait_until
from tests.support.programs import RELAY, ROOT, START, environment, free_port, launched
from tests.support.relay_toml import listener, settings
from tests.support.upstreams import Echo


def test_two_that_start_at_the_same_moment(echo: Echo, tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    path = tmp_path / "relay.toml"
    path.write_text(settings(listener(echo.address, bind=[address]), workers=2))
    logs = [tmp_path / "0.log", tmp_path / "1.log"]
    line = launched([*RELAY, "run", "--config", str(path)])
    both = []
    for log in logs:
        with log.open("wb") as out:
            both.append(subprocess.Popen(line, cwd=ROOT, env=environment(), stdout=out, stderr=out))
    try:
        wait_until(lambda: any(one.poll() is not None for one in both), START, "one refused")
        (loser,) = (number for number, one in enumerate(both) if one.poll() is not None)
        winner = 1 - loser
        assert both[loser].returncode == 1
        assert f"listeners.main.bind: {address}: address already in use" in logs[loser].read_text()
        wait_until(lambda: '"ready"' in logs[winner].read_text(), START, "the other one ready")
        host, port = address.split(":")
        assert all(echoes((host, int(port))) for _ in range(20))
        both[winner].terminate()
    finally:
        for one in both:
            one.kill()
            one.wait()


def test_one_that_was_taken_over_while_drained_is_not_put_back(echo: Echo, start: Start) -> None:
    toml = settings(listener(echo.address, bind=[f"127.0.0.1:{free_port()}"]), workers=2)
    first = start(toml)
    assert first.post("/drain")[0] == 202
    first.wait_phase("drained")
    second = start(toml)
    code, text = first.post("/undrain")
    assert code == 409
    assert "address already in use" in text
    assert all(echoes(second.address()) for _ in range(20))
    second.stop()
    assert first.post("/undrain") == (200, "ok\n")
    first.wait_status(lambda status: status["state"] == "ready", what="back in service")
    assert all(echoes(first.address()) for _ in range(5))


@pytest.mark.parametrize("host", ["127.0.0.2", "0.0.0.0"])
def test_anothers_address_is_refused_though_the_port_is_listened_on_already(
    echo: Echo, start: Start, host: str
) -> None:
    port = free_port()
    other = start(settings(listener(echo.address, bind=[f"127.0.0.2:{port}"])))
    mine = listener(echo.address, bind=[f"127.0.0.1:{port}"])
    relay = start(settings(mine))
    relay.expected_errors.add("reload failed")
    code, text = change(relay, settings(mine, listener(echo.address, name="more", bind=[f"{host}:{port}"])))
    assert code == 409
    assert f"listeners.more.bind: {host}:{port}: address already in use" in text
    assert all(echoes(other.address()) for _ in range(20))
    assert echoes(relay.address())


def test_an_address_and_the_wildcard_of_one_relay_are_not_in_each_others_way(start: Start) -> None:
    with named(b"all") as everywhere, named(b"one") as one:
        port = free_port()
        start(
            settings(
                listener(everywhere.address, bind=[f"0.0.0.0:{port}"]),
                listener(one.address, name="one", bind=[f"127.0.0.1:{port}"]),
            )
        )
        assert who(("127.0.0.1", port)) == b"one", "the more specific address"
        assert who(("127.0.0.2", port)) == b"all"
