"""What all connections together make an engine hold stays below its limit; beyond it receives wait. Nothing is lost."""

from __future__ import annotations

import contextlib
import socket
from time import monotonic, thread_time

import pytest

from relay.engines.contract import Event
from tests.engines.lab import Couple, Lab
from tests.engines.peers import Receiving, Sending, blocks, end, pattern, push, receive, receive_to_end, repeated
from tests.engines.running import RunningEngine
from tests.support.programs import PATIENCE

SILENT = 200  # peers that do not read
BUFFERS = 65536  # bytes of kernel buffer, so that they are soon full
LIMIT = 5 << 20  # bytes; without a limit those peers make an engine hold half as much again
LEAST = 1 << 20  # bytes, the least that can be set
BULK = 16  # MiB


def fill_all(engine: RunningEngine, socks: list[socket.socket], data: bytes) -> list[int]:
    """Send `data` over and over on each until none of them takes any more, nobody reading; returns the bytes sent."""
    totals = [0] * len(socks)
    unchanged = 0
    while unchanged < 3:
        before = totals
        totals = [push(sock, data, total) for sock, total in zip(socks, totals, strict=True)]
        engine.wait_ticks(3)
        unchanged = unchanged + 1 if totals == before else 0
    assert engine.engine.held
    return totals


@pytest.mark.parametrize("limit", [LEAST, LIMIT])
def test_a_crowd_that_does_not_read(lab: Lab, limit: int) -> None:
    engine = lab.start(held_limit=limit)
    line = lab.line(engine, buffers=BUFFERS)
    couples = [line.open() for _ in range(SILENT)]
    data = pattern("crowd", 100_003)
    sent = fill_all(engine, [couple.client for couple in couples], data)
    assert 0 < engine.held_peak <= limit
    for couple, size in zip(couples, sent, strict=True):
        end(couple.client)
        assert receive_to_end(couple.upstream) == repeated(data, size)
        couple.upstream.close()
        assert engine.ended(couple.handler) == (Event.FINISHED,)
        assert couple.handler.up == size
    assert engine.held_peak <= limit
    engine.wait_gone()


def test_others_go_on_beside_a_crowd_that_does_not_read(lab: Lab) -> None:
    engine = lab.start(held_limit=LIMIT)
    line = lab.line(engine, buffers=BUFFERS)
    early = line.open()
    couples = [line.open() for _ in range(SILENT)]
    fill_all(engine, [couple.client for couple in couples], pattern("others", 100_003))
    for couple in (early, line.open()):
        for number in range(100):
            couple.client.sendall(number.to_bytes(4, "big"))
            assert receive(couple.upstream, 4) == number.to_bytes(4, "big")
            couple.upstream.sendall(number.to_bytes(4, "big"))
            assert receive(couple.client, 4) == number.to_bytes(4, "big")
    assert engine.held_peak <= LIMIT


@pytest.mark.parametrize("down", [False, True], ids=["up", "down"])
def test_with_no_room_at_all_everything_passes_and_nothing_is_held(lab: Lab, down: bool) -> None:
    engine = lab.start(held_limit=1)
    client, upstream, handler = lab.couple(engine)
    sender, reader = (upstream, client) if down else (client, upstream)
    receiving = Receiving(reader)
    sending = Sending(sender, blocks(("no room", down), BULK))
    sending.finish()
    receiving.finish()
    assert receiving.received == BULK << 20
    assert receiving.digest.digest() == sending.digest.digest()
    reader.sendall(b"and back")
    end(reader)
    assert receive_to_end(sender) == b"and back"
    assert engine.ended(handler) == (Event.FINISHED,)
    assert engine.held_peak == 0


def stuck(engine: RunningEngine, couple: Couple) -> None:
    """Send until the whole way is full, nobody reading."""
    couple.client.setblocking(False)
    unchanged, sent = 0, 0
    while unchanged < 3:
        before = sent
        with contextlib.suppress(BlockingIOError):
            while True:
                sent += couple.client.send(b"x" * 65536)
        engine.wait_ticks(3)
        unchanged = unchanged + 1 if sent == before else 0


def test_waiting_for_room_costs_next_to_no_cpu(lab: Lab) -> None:
    """Also for a peer that has ended its own direction, which looks as if it had something to tell all the time."""
    engine = lab.start(held_limit=1)
    line = lab.line(engine, buffers=BUFFERS)
    for number in range(2):
        couple = line.open()
        if number % 2:
            end(couple.upstream)
        stuck(engine, couple)
    cpu, began = engine.call(thread_time), monotonic()
    engine.wait_ticks(75)
    used, seconds = engine.call(thread_time) - cpu, monotonic() - began
    assert used < 0.05 * PATIENCE * seconds


def test_a_reset_is_seen_while_nothing_may_be_held(lab: Lab) -> None:
    engine = lab.start(held_limit=1)
    line = lab.line(engine, buffers=BUFFERS)
    couple = line.open()
    stuck(engine, couple)
    lab.close_sockets(couple.client, line.upstream)  # the upstream goes, with bytes unread: a reset
    assert engine.ended(couple.handler) == (Event.UPSTREAM_RESET,)
