"""Half-close: FIN is passed on after all bytes before it, in either order, while the other direction goes on."""

from __future__ import annotations

from relay.engines.contract import Event
from tests.engines.lab import Couple, Lab
from tests.engines.peers import (
    Receiving,
    Sending,
    blocks,
    end,
    pattern,
    receive,
    receive_to_end,
    repeated,
    unacknowledged,
)
from tests.engines.running import RunningEngine

MEGABYTES = 24  # more than the kernel's buffers on the way take


def finished(engine: RunningEngine, couple: Couple, up: int, down: int) -> None:
    """The connection ended well, once, and so many bytes were counted."""
    handler = couple.handler
    assert engine.ended(handler) == (Event.FINISHED,)
    assert (handler.up, handler.down) == (up, down)
    engine.wait_gone()


def test_client_ends_first_and_megabytes_still_come_back(lab: Lab, host: str) -> None:
    engine = lab.start()
    couple = lab.couple(engine, host)
    couple.client.sendall(b"request")
    end(couple.client)
    assert receive_to_end(couple.upstream) == b"request"
    receiving = Receiving(couple.client)
    sending = Sending(couple.upstream, blocks("down", MEGABYTES))
    sending.finish()
    receiving.finish()
    assert receiving.digest.digest() == sending.digest.digest()
    finished(engine, couple, 7, MEGABYTES << 20)


def test_upstream_ends_first_and_megabytes_still_go_up(lab: Lab, host: str) -> None:
    engine = lab.start()
    couple = lab.couple(engine, host)
    couple.upstream.sendall(b"banner")
    end(couple.upstream)
    assert receive_to_end(couple.client) == b"banner"
    receiving = Receiving(couple.upstream)
    sending = Sending(couple.client, blocks("up", MEGABYTES))
    sending.finish()
    receiving.finish()
    assert receiving.digest.digest() == sending.digest.digest()
    finished(engine, couple, MEGABYTES << 20, 6)


def test_both_end_at_once(lab: Lab, host: str) -> None:
    engine = lab.start()
    couple = lab.couple(engine, host)
    with engine.held_still():
        couple.client.sendall(b"goodbye")
        end(couple.client)
        couple.upstream.sendall(b"bye")
        end(couple.upstream)
    assert receive_to_end(couple.upstream) == b"goodbye"
    assert receive_to_end(couple.client) == b"bye"
    finished(engine, couple, 7, 3)


def test_end_behind_a_slow_reader_comes_after_all_bytes(lab: Lab, host: str) -> None:
    engine = lab.start()
    couple = lab.couple(engine, host)
    sending = Sending(couple.client, blocks("slow", MEGABYTES))
    engine.wait(lambda: engine.engine.held, "the upstream is behind")
    engine.wait_stable(lambda: sending.sent)
    receiving = Receiving(couple.upstream)
    receiving.finish()
    sending.finish()
    assert receiving.digest.digest() == sending.digest.digest()
    end(couple.upstream)
    assert couple.client.recv(1) == b""
    finished(engine, couple, MEGABYTES << 20, 0)


def test_answer_and_end_behind_a_slow_client_that_has_ended(lab: Lab, host: str) -> None:
    """Both FINs have reached the engine's sockets before the client has taken what the upstream sent."""
    engine = lab.start()
    couple = lab.line(engine, host, buffers=65536).open()
    end(couple.client)
    assert couple.upstream.recv(1) == b""
    data = pattern("answer", 16384)
    sent = 0
    while not engine.engine.held:
        sent += couple.upstream.send(data)
        engine.wait(lambda: not unacknowledged(couple.upstream), "the engine's kernel has it")
        engine.wait_stable(lambda: engine.engine.held, ticks=2)
    sent += couple.upstream.send(data)
    end(couple.upstream)
    engine.wait(lambda: not unacknowledged(couple.upstream), "the engine's kernel has the end")
    engine.wait_ticks(3)
    assert engine.engine.held
    assert not couple.handler.endings
    assert receive_to_end(couple.client) == repeated(data, sent)
    finished(engine, couple, 0, sent)


def test_long_answer_that_is_complete_before_the_engine_looks(lab: Lab, host: str) -> None:
    """More than an engine takes from one socket in one turn, and the end of both directions with it."""
    engine = lab.start()
    couple = lab.couple(engine, host)
    receiving = Receiving(couple.client)
    Sending(couple.upstream, blocks("warm", 64), then_end=False).finish()  # lets the kernel's buffers grow
    engine.wait(lambda: receiving.received == 64 << 20, "the receive buffer has grown")
    end(couple.client)
    assert couple.upstream.recv(1) == b""
    with engine.held_still():
        last = Sending(couple.upstream, blocks("long", 3))
        last.join(1.0)  # as much as the buffers take: the engine's socket has the end too, unless they did not grow
    last.finish()
    receiving.finish()
    assert receiving.received == 67 << 20
    finished(engine, couple, 0, 67 << 20)


def test_both_directions_end_behind_slow_readers(lab: Lab) -> None:
    engine = lab.start()
    couple = lab.couple(engine)
    up = Sending(couple.client, blocks("up", MEGABYTES))
    down = Sending(couple.upstream, blocks("down", MEGABYTES))
    engine.wait_stable(lambda: (up.sent, down.sent))
    at_upstream, at_client = Receiving(couple.upstream), Receiving(couple.client)
    for thread in (up, down, at_upstream, at_client):
        thread.finish()
    assert at_upstream.digest.digest() == up.digest.digest()
    assert at_client.digest.digest() == down.digest.digest()
    finished(engine, couple, MEGABYTES << 20, MEGABYTES << 20)


def test_client_that_ends_right_after_connecting(lab: Lab, host: str) -> None:
    engine = lab.start()
    line = lab.line(engine, host)
    with engine.held_still():
        client = line.client()
        end(client)
    upstream = lab.accepted(line.upstream)
    assert upstream.recv(1) == b""
    upstream.sendall(b"still here")
    end(upstream)
    assert receive_to_end(client) == b"still here"
    finished(engine, Couple(client, upstream, engine.handler_of(client)), 0, 10)


def test_upstream_that_ends_right_after_accepting(lab: Lab, host: str) -> None:
    engine = lab.start()
    line = lab.line(engine, host)
    client = line.client()
    upstream = lab.accepted(line.upstream)
    end(upstream)
    assert client.recv(1) == b""
    client.sendall(b"still here")
    end(client)
    assert receive_to_end(upstream) == b"still here"
    finished(engine, Couple(client, upstream, engine.handler_of(client)), 10, 0)


def test_closing_without_a_byte_is_an_end_from_either_side(lab: Lab, host: str) -> None:
    engine = lab.start()
    line = lab.line(engine, host)
    first = line.open()
    first.client.close()
    assert first.upstream.recv(1) == b""
    first.upstream.close()
    finished(engine, first, 0, 0)
    second = line.open()
    second.upstream.close()
    assert second.client.recv(1) == b""
    second.client.close()
    finished(engine, second, 0, 0)


def test_last_bytes_and_end_in_one_go(lab: Lab, host: str) -> None:
    """Sizes around what one read takes: the end must be found behind a full read and behind a short one."""
    engine = lab.start()
    line = lab.line(engine, host)
    for size in (1, 65535, 65536, 65537, 131072, 131073):
        couple = line.open()
        data = pattern(size, size)
        Sending(couple.client, [data])
        assert receive_to_end(couple.upstream) == data
        end(couple.upstream)
        finished(engine, couple, size, 0)


def test_request_after_the_other_side_has_ended_and_drained(lab: Lab) -> None:
    engine = lab.start()
    couple = lab.couple(engine)
    end(couple.upstream)
    assert couple.client.recv(1) == b""
    for number in range(50):
        couple.client.sendall(number.to_bytes(2, "big"))
        assert receive(couple.upstream, 2) == number.to_bytes(2, "big")
    end(couple.client)
    finished(engine, couple, 100, 0)
