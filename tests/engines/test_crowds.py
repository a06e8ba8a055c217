"""Crowds: bulk beside small messages, thousands of short connections with any ending, and hundreds of silent ones."""

from __future__ import annotations

import contextlib
import itertools
import random
import socket
from time import monotonic, thread_time

import pytest

from relay.engines import base
from relay.engines.contract import Action, Close, Dial, Event, Wait
from tests.engines.kinds import Kind
from tests.engines.lab import Couple, Lab, fill
from tests.engines.leaks import descriptors, drop_queued, records
from tests.engines.peers import Receiving, Sending, blocks, end, receive, reset
from tests.engines.script import Script, ScriptedHandler
from tests.support.programs import PATIENCE

SHORT = 2000  # connections
AT_ONCE = 50
ROUND_TRIPS = 300
BULK = 16  # streams
CROWD, FEW = 100, 16
PER_TURN = 256 << 20  # bytes that bulk may pass between two turns of the event loop's own callbacks


def test_bulk_does_not_starve_small_messages(lab: Lab) -> None:
    engine = lab.start()
    line = lab.line(engine)
    bulk, small = line.open(), line.open()
    receiving = Receiving(bulk.upstream)
    sending = Sending(bulk.client, itertools.repeat(bytes(1 << 20)), then_end=False)
    engine.wait(lambda: receiving.received > 1 << 20, "bulk is under way")
    for number in range(ROUND_TRIPS):
        small.client.sendall(number.to_bytes(4, "big"))
        assert receive(small.upstream, 4) == number.to_bytes(4, "big")
        small.upstream.sendall(number.to_bytes(4, "big"))
        assert receive(small.client, 4) == number.to_bytes(4, "big")
    assert sending.is_alive()
    before = receiving.received
    engine.wait(lambda: receiving.received > before, "bulk goes on")
    bulk.upstream.shutdown(socket.SHUT_RDWR)
    with contextlib.suppress(OSError):  # the relay may have passed the end on already, as a reset
        bulk.client.shutdown(socket.SHUT_RDWR)
    sending.join()
    receiving.join()


def test_bulk_leaves_the_loop_its_turns(lab: Lab) -> None:
    """Timers and messages of the worker run on the same loop: its heartbeat must not wait for bulk to pause."""
    engine = lab.start()
    line = lab.line(engine)
    couples = [line.open() for _ in range(BULK)]
    receiving = [Receiving(couple.upstream) for couple in couples]
    passed = [0]

    def turn() -> None:
        passed.append(sum(stream.received for stream in receiving))
        engine.loop.call_later(0, turn)

    engine.call(turn)
    sending = [Sending(couple.client, blocks(number, 64)) for number, couple in enumerate(couples)]
    for sender in sending:
        sender.finish()
    for receiver in receiving:
        receiver.finish()
    assert max(after - before for before, after in itertools.pairwise(passed)) < PER_TURN
    for couple in couples:
        couple.upstream.close()
        assert engine.ended(couple.handler) == (Event.FINISHED,)


def test_a_sweep_of_a_crowd_leaves_others_their_turn(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deadlines and byte counts of thousands are checked every second, and a message must not wait for that."""
    monkeypatch.setattr(base, "SWEEP_BATCH", FEW)
    engine = lab.start()
    line = lab.line(engine)
    told = [0]
    at_turn: list[int] = []  # from the first turn on: on a slow machine the crowd's coming was told of before

    def count(_handler: ScriptedHandler) -> None:
        told[0] += 1

    line.script.on_moved = count
    couples = [line.open() for _ in range(CROWD)]

    def turn() -> None:
        at_turn.append(told[0])
        engine.loop.call_soon(turn)

    engine.call(turn)
    for number, couple in enumerate(couples):
        couple.client.sendall(number.to_bytes(4, "big"))
    for number, couple in enumerate(couples):
        assert receive(couple.upstream, 4) == number.to_bytes(4, "big")
    engine.wait(lambda: all(couple.handler.up == 4 for couple in couples), "all are told of their bytes")
    # One sweep may end, and the next one begin, within one turn.
    assert max(after - before for before, after in itertools.pairwise(at_turn)) <= 2 * FEW


def test_thousands_of_short_connections_leave_nothing_behind(lab: Lab, kind: Kind) -> None:
    """With endings of every kind, many in one turn of the engine's, while others are being accepted."""
    engine = lab.start()
    line = lab.line(engine)
    choice = random.Random(3)

    def crowd(count: int) -> None:
        for _ in range(count // AT_ONCE):
            couples = [line.open() for _ in range(AT_ONCE)]
            with engine.held_still():
                for number, couple in enumerate(couples):
                    choice.choice(ENDINGS)(couple)
                    if number % 5 == 0:
                        choice.choice((reset, socket.socket.close))(line.client())
            lab.close_sockets(line.upstream)
            while engine.engine.connections:
                engine.wait_ticks(1)
                drop_queued(line.upstream)
            drop_queued(line.upstream)

    crowd(AT_ONCE)  # what is made once is there now
    engine.handlers.clear()
    engine.wait_turns()  # an engine may close what it has let go of a turn later
    before_records, before_descriptors = records(kind), descriptors()
    crowd(SHORT)
    engine.wait_gone()
    for handler in engine.handlers.values():
        assert len(handler.endings) + handler.kinds.count(Event.DIAL_FAILED) == 1
    del handler
    engine.handlers.clear()
    engine.wait_turns()
    assert records(kind) == before_records
    assert descriptors() == before_descriptors


def _let_go(couple: Couple) -> None:
    couple.client.close()
    couple.upstream.close()


def _reset_both(couple: Couple) -> None:
    reset(couple.client)
    reset(couple.upstream)


def _end_and_close(couple: Couple) -> None:
    end(couple.client)
    couple.upstream.close()


def _reset_the_sender(couple: Couple) -> None:
    couple.upstream.sendall(b"x" * 100_000)
    reset(couple.upstream)


def _reset_the_reader(couple: Couple) -> None:
    couple.client.sendall(b"x" * 1000)
    reset(couple.upstream)


def _reset_half_closed(couple: Couple) -> None:
    end(couple.upstream)
    reset(couple.client)


ENDINGS = (_let_go, _reset_both, _end_and_close, _reset_the_sender, _reset_the_reader, _reset_half_closed)


def test_numbers_of_closed_sockets_are_not_confused_with_new_ones(lab: Lab) -> None:
    """Closed and accepted in one batch: a new connection must not get the number of one that has an event to come.

    The first connection is reset, a handler's answer to the second acts on a third at once, new ones arrive, and only
    then comes the news from the first one's other side.
    """
    engine = lab.start()
    server = lab.listening()
    waiting_at = lab.listen(engine, Script(Wait()))
    third = engine.handler_of(lab.connected(waiting_at))

    def act(_handler: ScriptedHandler, _value: object) -> Action:
        engine.engine.perform(third, lab.dial(server))
        return Close(False, True)

    first = lab.couple(engine)
    second = lab.line(engine, answers={Event.CLIENT_RESET: act}).open()
    with engine.held_still():
        reset(first.client)
        reset(second.client)
        new = [lab.connected(waiting_at) for _ in range(12)]
        reset(first.upstream)
    assert engine.ended(second.handler) == (Event.CLIENT_RESET,)
    lab.accepted(server)
    for client in new:
        assert engine.handler_of(client).events == []
    assert engine.engine.connections == len(new) + 1


def test_silent_half_closed_connections_cost_next_to_no_cpu(lab: Lab) -> None:
    """An engine that waits for a FIN or a reset must not be woken again and again by a FIN that it has seen."""
    engine = lab.start()
    line, slow = lab.line(engine), lab.line(engine, buffers=65536)
    for number in range(60):
        couple = line.open()
        end(couple.client if number % 2 else couple.upstream)
    for number in range(10):
        couple = slow.open()  # behind bytes that nobody takes
        fill(engine, couple.client if number % 2 else couple.upstream, b"x" * 65536)
        end(couple.client if number % 2 else couple.upstream)
        if number % 4 < 2:  # and one that does not take them has ended as well
            end(couple.upstream if number % 2 else couple.client)
    waiting = [lab.connected(lab.listen(engine, Script(Wait()))) for _ in range(10)]
    dialling = [lab.connected(lab.listen(engine, Script(Dial(lab.silent_port(), "", 600.0)))) for _ in range(5)]
    for client in (*waiting, *dialling):
        client.sendall(b"hello")
        end(client)
    engine.wait_ticks(20)
    cpu, began = engine.call(thread_time), monotonic()
    engine.wait_ticks(75)
    used, seconds = engine.call(thread_time) - cpu, monotonic() - began
    assert used < 0.05 * PATIENCE * seconds


def test_silent_connections_cost_next_to_no_cpu(lab: Lab) -> None:
    engine = lab.start()
    line = lab.line(engine)
    couples = [line.open() for _ in range(200)]
    couples[0].client.sendall(b"x")
    assert receive(couples[0].upstream, 1) == b"x"
    engine.wait_ticks(5)
    cpu, began = engine.call(thread_time), monotonic()
    engine.wait_ticks(75)
    used, seconds = engine.call(thread_time) - cpu, monotonic() - began
    assert used < 0.05 * PATIENCE * seconds
    assert engine.engine.connections == len(couples)
