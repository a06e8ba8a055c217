"""The ring's traps: conditions that io_uring makes possible, each brought about here on purpose.

Most need more traffic than a test can make. So the rings and buffers are made small instead: a submission ring that is
full several times a turn, a completion ring that overflows, two buffers for all connections.
"""

from __future__ import annotations

import contextlib
import random
import socket
import threading
from collections.abc import Iterator

import pytest

from relay.engines.contract import Event
from relay.engines.ring import reactor
from relay.engines.ring.engine import RingEngine
from relay.engines.ring.interest import Interest
from relay.engines.ring.records import Side
from tests.engines.lab import Lab, fill
from tests.engines.peers import (
    Receiving,
    Sending,
    blocks,
    end,
    pattern,
    receive,
    receive_to_end,
    receive_to_reset,
    repeated,
    reset,
)
from tests.engines.ring.rings import ring_kind

CROWD = 120  # connections


@pytest.fixture
def small_rings(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    """Full after a few operations, and more completions at once than there is room for."""
    monkeypatch.setattr(reactor, "ENTRIES", 32)
    monkeypatch.setattr(reactor, "COMPLETIONS", 64)
    monkeypatch.setattr(reactor, "CHUNK", 8)
    monkeypatch.setattr(reactor, "FULL", 32 - 8 - 2)
    lab = Lab(ring_kind())
    yield lab
    lab.close()


@pytest.fixture
def lab_of_ones(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    """Completions are handled one by one, and whatever one of them leads to is submitted before the next."""
    monkeypatch.setattr(reactor, "CHUNK", 1)
    monkeypatch.setattr(reactor, "FULL", 1)
    lab = Lab(ring_kind())
    yield lab
    lab.close()


@pytest.fixture
def two_buffers() -> Iterator[Lab]:
    lab = Lab(ring_kind(buffers=2))
    yield lab
    lab.close()


def everybody_talks(lab: Lab, rounds: int) -> None:
    """All connections send at the same moment, several messages each way, and end in good order."""
    engine = lab.start()
    line = lab.line(engine)
    couples = [line.open() for _ in range(CROWD)]
    for turn in range(rounds):
        messages = [pattern((turn, number), 50 + 37 * (number % 80)) for number in range(CROWD)]
        with engine.held_still():
            for couple, message in zip(couples, messages, strict=True):
                couple.client.sendall(message)
                couple.upstream.sendall(message[::-1])
        for couple, message in zip(couples, messages, strict=True):
            assert receive(couple.upstream, len(message)) == message
            assert receive(couple.client, len(message)) == message[::-1]
    with engine.held_still():
        for couple in couples:
            couple.client.sendall(b"the end")
            end(couple.client)
            couple.upstream.close()
    for couple in couples:
        couple.client.close()
        engine.ended(couple.handler)
    engine.wait_gone()


def test_rings_that_are_full_many_times_a_turn_lose_nothing(small_rings: Lab) -> None:
    everybody_talks(small_rings, rounds=5)


def test_a_burst_of_connections_with_a_small_ring(small_rings: Lab) -> None:
    """The prototype of this engine overwrote submissions in a burst of accepts, and hung."""
    engine = small_rings.start()
    line = small_rings.line(engine)
    with engine.held_still():
        clients = [line.client() for _ in range(CROWD)]
        for number, client in enumerate(clients):
            client.sendall(number.to_bytes(4, "big"))
    upstreams = [small_rings.accepted(line.upstream) for _ in clients]
    assert {receive(sock, 4) for sock in upstreams} == {number.to_bytes(4, "big") for number in range(CROWD)}
    with engine.held_still():
        for client in clients:
            reset(client)
    for sock in upstreams:
        receive_to_reset(sock)
    engine.wait_gone()


@pytest.mark.parametrize("down", [False, True], ids=["up", "down"])
def test_bulk_with_a_small_ring(small_rings: Lab, down: bool) -> None:
    engine = small_rings.start()
    client, upstream, _ = small_rings.couple(engine)
    sender, reader = (upstream, client) if down else (client, upstream)
    receiving, sending = Receiving(reader), Sending(sender, blocks("small ring", 32))
    sending.finish()
    receiving.finish()
    assert receiving.digest.digest() == sending.digest.digest()


def test_more_messages_than_buffers(two_buffers: Lab) -> None:
    """A receive that finds no buffer ends, even with nothing to receive (ENOBUFS): it must be armed again."""
    everybody_talks(two_buffers, rounds=5)


def test_bulk_with_two_buffers(two_buffers: Lab) -> None:
    engine = two_buffers.start()
    client, upstream, _ = two_buffers.couple(engine)
    receiving, sending = Receiving(upstream), Sending(client, blocks("two buffers", 32))
    sending.finish()
    receiving.finish()
    assert receiving.digest.digest() == sending.digest.digest()


@pytest.mark.parametrize("seed", range(6))
def test_sends_that_fall_short_keep_their_order(lab: Lab, seed: int) -> None:
    """Messages of all sizes towards a reader that stops and goes on: what was cut short goes before what came later."""
    engine = lab.start()
    client, upstream, handler = lab.line(engine, buffers=8192).open()
    choice = random.Random(seed)
    sizes = [choice.choice((1, 100, 1500, 1984, 2000, 5000, 40_000)) for _ in range(150)]
    data = pattern(("short", seed), sum(sizes))
    parts, at = [], 0
    for size in sizes:
        parts.append(data[at : at + size])
        at += size
    sending = Sending(client, parts)
    received = b""
    while len(received) < len(data):
        if choice.random() < 0.2:
            engine.wait_ticks(1)
        part = upstream.recv(choice.choice((100, 3000, 65536)))
        assert part, "ended too early"
        received += part
    assert received == data
    sending.finish()
    assert receive_to_end(upstream) == b""
    upstream.close()
    assert engine.ended(handler) == (Event.FINISHED,)


def test_messages_held_before_the_rest_of_an_earlier_one_is_told(
    lab_of_ones: Lab,
) -> None:
    """Each send is submitted before the next message of the same turn is looked at, and that one then has to wait.

    That the first fell short is known at once, how much of it went only a turn later: its rest goes before the other.
    """
    engine = lab_of_ones.start()
    client, upstream, _ = lab_of_ones.line(engine, buffers=65536).open()
    choice = random.Random(2)
    data = pattern("ones", 100_003)
    sent = fill(engine, client, data)
    total = sent + 2_000_000
    stream = repeated(data, total)
    received = 0
    client.setblocking(False)
    while received < total:
        with engine.held_still(), contextlib.suppress(BlockingIOError):
            while sent < total:
                sent += client.send(stream[sent : sent + 1700])
        part = upstream.recv(choice.choice((3000, 40_000, 150_000)))
        assert part == stream[received : received + len(part)]
        received += len(part)


def test_the_rest_of_a_message_is_not_overwritten_before_it_is_held(two_buffers: Lab) -> None:
    """A buffer goes back when the result of its send is known, and not when the send is submitted."""
    engine = two_buffers.start()
    client, upstream, _ = two_buffers.line(engine, buffers=65536).open()
    data = pattern("rest", 1_000_003)
    choice = random.Random(3)
    for _ in range(3):
        sending = Sending(client, [data[at : at + 1500] for at in range(0, len(data), 1500)], then_end=False)
        received = 0
        while received < len(data):
            if received % 7 == 0:
                engine.wait_ticks(1)
            part = upstream.recv(choice.choice((3000, 40_000, 150_000)))
            assert part == data[received : received + len(part)]
            received += len(part)
        sending.finish()


@pytest.mark.parametrize("side", ["client", "upstream"])
def test_a_reset_right_behind_data_is_passed_on(lab: Lab, side: str) -> None:
    """The receive that takes the data is not woken again for the reset that came with it."""
    engine = lab.start()
    for _ in range(10):
        couple = lab.couple(engine)
        sender, reader = (couple.client, couple.upstream) if side == "client" else (couple.upstream, couple.client)
        with engine.held_still():
            sender.sendall(b"last words")
            reset(sender)
        data = receive_to_reset(reader)
        assert data in (b"", b"last words")  # a reset may overtake what was sent before it
        engine.ended(couple.handler)


@pytest.mark.parametrize("number", range(5))
def test_a_reset_that_a_send_was_told_of_is_not_taken_for_an_end(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """The kernel reports a reset once.

    A poll and a send to the same socket are submitted together, with a reset pending: the poll ends first, the send
    reports the reset, and a receive right after the poll finds nothing but an end.
    """
    lab = Lab(ring_kind())
    engine = lab.start()
    couple = lab.couple(engine)
    plain = Interest.poll_readable
    done = threading.Event()

    def with_a_reset_and_a_send(self: Interest, side: Side) -> None:
        plain(self, side)
        link = side.link
        if link is not None and side is link.client and side.peer is not None and not done.is_set():
            done.set()
            reset(couple.client)
            assert isinstance(engine.engine, RingEngine)
            engine.engine._pump._message(side.peer, 0, 1)

    monkeypatch.setattr(Interest, "poll_readable", with_a_reset_and_a_send)
    couple.client.sendall(bytes(60_000 + number))  # bulk: it is read with recv(2) from then on
    receive_to_reset(couple.upstream)
    assert done.is_set()
    assert engine.ended(couple.handler) == (Event.CLIENT_RESET,)
    lab.close()


def test_a_peer_that_goes_while_its_half_close_is_passed_on(lab: Lab) -> None:
    """The ring would leave shutdown(2) to another thread, which may find the descriptor closed, or somebody else's."""
    engine = lab.start()
    line = lab.line(engine)
    for _ in range(30):
        couples = [line.open() for _ in range(10)]
        with engine.held_still():
            for couple in couples:
                end(couple.client)
                couple.upstream.sendall(b"x")
                reset(couple.upstream)
        for couple in couples:
            engine.ended(couple.handler)
        fresh = line.open()
        fresh.client.sendall(b"whole")
        assert receive(fresh.upstream, 5) == b"whole"
        fresh.upstream.sendall(b"as well")
        assert receive(fresh.client, 7) == b"as well"
        lab.close_sockets(line.upstream)


def test_cancelled_receives_and_polls_leave_the_other_alone(lab: Lab) -> None:
    """A blocked direction has no receive, but a poll for a reset: it is heard of at once."""
    engine = lab.start()
    line = lab.line(engine, buffers=65536)
    couple = line.open()
    couple.client.setblocking(False)
    while not engine.engine.held:
        try:
            couple.client.send(bytes(65536))
        except BlockingIOError:
            engine.wait_ticks(1)
    engine.wait_ticks(3)
    couple.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    couple.client.close()
    assert engine.ended(couple.handler) == (Event.CLIENT_RESET,)
    receive_to_reset(couple.upstream)
