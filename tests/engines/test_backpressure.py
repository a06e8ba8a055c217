"""Backpressure: a side that does not read stops its peer; what is held for it is bounded, and nothing is lost."""

from __future__ import annotations

from pathlib import Path

from relay.engines.contract import Event
from tests.engines.kinds import HELD_BOUND
from tests.engines.lab import Lab, fill, fill_all
from tests.engines.peers import end, pattern, push, receive, receive_to_end, repeated, reset
from tests.engines.running import RunningEngine

SILENT = 200  # peers that do not read
BUFFERS = 65536  # bytes of kernel buffer, so that they are soon full


def held_is_bounded(engine: RunningEngine, directions: int, connections: int = 1) -> None:
    """Now, and whenever the engine ticked."""
    assert 0 < engine.held_peak <= engine.kind.held * directions
    assert engine.held_peak <= HELD_BOUND * connections


def test_sender_is_stopped_until_its_reader_reads(lab: Lab, host: str) -> None:
    engine = lab.start()
    for down in (False, True):
        client, upstream, handler = lab.line(engine, host, buffers=BUFFERS).open()
        sender, reader = (upstream, client) if down else (client, upstream)
        data = pattern(("slow", down), 100_003)
        sent = fill(engine, sender, data)
        assert engine.engine.held
        end(sender)
        assert receive_to_end(reader) == repeated(data, sent)
        reader.close()
        assert engine.ended(handler) == (Event.FINISHED,)
        assert handler.up + handler.down == sent
    held_is_bounded(engine, directions=1)
    engine.wait_gone()


def test_other_direction_goes_on_while_one_is_blocked(lab: Lab) -> None:
    engine = lab.start()
    client, upstream, _ = lab.line(engine, buffers=BUFFERS).open()
    fill(engine, client, pattern("up", 100_003))
    for number in range(200):
        upstream.sendall(number.to_bytes(4, "big"))
        assert receive(client, 4) == number.to_bytes(4, "big")
    held_is_bounded(engine, directions=1)


def test_both_directions_blocked_and_then_released(lab: Lab) -> None:
    engine = lab.start()
    client, upstream, handler = lab.line(engine, buffers=BUFFERS).open()
    data = pattern("both", 100_003)
    up = fill(engine, client, data)
    down = fill(engine, upstream, data)
    assert engine.engine.held > 1
    assert receive(upstream, up) == repeated(data, up)
    assert receive(client, down) == repeated(data, down)
    engine.wait(lambda: not engine.engine.held, "nothing is held")
    client.close()
    upstream.close()
    assert engine.ended(handler) == (Event.FINISHED,)
    held_is_bounded(engine, directions=2)


def test_reader_that_takes_little_by_little(lab: Lab) -> None:
    engine = lab.start()
    client, upstream, _ = lab.line(engine, buffers=BUFFERS).open()
    data = pattern("little", 50_021)
    sent = fill(engine, client, data)
    received = bytearray()
    while len(received) < 2_000_000:
        received += receive(upstream, 1777)
        sent = push(client, data, sent)
    end(client)
    received += receive_to_end(upstream)
    assert bytes(received) == repeated(data, sent)
    held_is_bounded(engine, directions=1)


def test_reader_that_vanishes_gives_back_what_was_held(lab: Lab) -> None:
    engine = lab.start()
    line = lab.line(engine, buffers=BUFFERS)
    for _ in range(3):
        client, upstream, handler = line.open()
        fill(engine, client, pattern("gone", 100_003))
        assert engine.engine.held
        reset(upstream)
        assert engine.ended(handler) == (Event.UPSTREAM_RESET,)
        engine.wait_gone()


def resident() -> int:
    """Resident memory of this process, bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_many_readers_that_do_not_read(lab: Lab) -> None:
    engine = lab.start()
    line = lab.line(engine, buffers=65536)
    couples = [line.open() for _ in range(SILENT)]
    before = resident()
    data = pattern("many", 20_011)
    sent = fill_all(engine, [couple.client for couple in couples], data)
    assert engine.engine.held
    held_is_bounded(engine, directions=SILENT, connections=SILENT)
    assert resident() - before <= SILENT * HELD_BOUND
    for couple in couples:
        end(couple.client)
    for couple, size in zip(couples, sent, strict=True):
        assert receive_to_end(couple.upstream) == repeated(data, size)
        couple.upstream.close()
    for couple in couples:
        assert engine.ended(couple.handler) == (Event.FINISHED,)
    engine.wait_gone()
