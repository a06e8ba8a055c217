"""The control channel: messages arrive whole with their descriptors, and no side ever waits for the other."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from relay.control import (
    KINDS,
    MAX_DESCRIPTORS,
    MAX_MESSAGE,
    Channel,
    ChannelFull,
    Checked,
    Drain,
    Failing,
    Log,
    Message,
    Ready,
    Resolved,
    Start,
    Stop,
    pair,
)


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    one, other = pair()
    channels = Channel(one), Channel(other)
    yield channels
    for channel in channels:
        channel.close()


MESSAGES = [
    Start(),
    Ready(4711),
    Resolved("hub.example", ("203.0.113.1", "2001:db8::1")),
    Resolved("hub.example", ()),
    Checked("2001:db8::1", 8883, False),
    Failing(("hub.example",)),
    Drain(60.0),
    Stop(),
    Log("warning", "relay.resolve", "cannot resolve häb\n", "Traceback …"),
    Log("error", "relay", "\udcff"),  # what a name that is not UTF-8 looks like
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message.kind)
def test_a_message_arrives_as_it_was_sent(ends: tuple[Channel, Channel], message: Message) -> None:
    sender, receiver = ends
    sender.send(message)
    assert receiver.wait(0)
    assert receiver.receive() == (message, [])
    assert not receiver.wait(0)


def test_every_kind_of_message_is_among_them() -> None:
    assert {type(message) for message in MESSAGES} == set(KINDS.values())


def test_descriptors_arrive_with_their_message_in_order(ends: tuple[Channel, Channel]) -> None:
    sender, receiver = ends
    pipes = [os.pipe() for _ in range(3)]
    sender.send(Stop())
    sender.send(Start(), [writing for _, writing in pipes])
    assert receiver.receive() == (Stop(), [])
    received = receiver.receive()
    assert received is not None
    message, descriptors = received
    assert message == Start()
    for number, descriptor in enumerate(descriptors):
        assert not os.get_inheritable(descriptor)
        os.write(descriptor, bytes([number]))
        os.close(descriptor)
    for number, (reading, writing) in enumerate(pipes):
        assert os.read(reading, 10) == bytes([number])
        os.close(reading)
        os.close(writing)


def test_as_many_descriptors_as_allowed_and_no_more(ends: tuple[Channel, Channel]) -> None:
    sender, receiver = ends
    with socket.socket() as sock:
        sender.send(Start(), [sock.fileno()] * MAX_DESCRIPTORS)
        received = receiver.receive()
        assert received is not None
        assert len(received[1]) == MAX_DESCRIPTORS
        for descriptor in received[1]:
            os.close(descriptor)
        with pytest.raises(ValueError, match=f"251 descriptors in one control message; at most {MAX_DESCRIPTORS}"):
            sender.send(Start(), [sock.fileno()] * (MAX_DESCRIPTORS + 1))


def test_the_longest_message_fits_and_a_longer_one_is_refused(ends: tuple[Channel, Channel]) -> None:
    sender, receiver = ends
    frame = len('{"kind": "log", "level": "", "logger": "", "text": "", "traceback": ""}')
    longest = Log("", "", "x" * (MAX_MESSAGE - frame))
    sender.send(longest)
    assert receiver.receive() == (longest, [])
    with pytest.raises(ValueError, match=f"a control message of {MAX_MESSAGE + 1} bytes; at most {MAX_MESSAGE}"):
        sender.send(Log("", "", "x" * (MAX_MESSAGE - frame + 1)))
    assert not receiver.wait(0)


def test_nothing_to_receive_yet(ends: tuple[Channel, Channel]) -> None:
    with pytest.raises(BlockingIOError):
        ends[0].receive()


def test_a_side_that_does_not_read_is_noticed_and_loses_nothing(ends: tuple[Channel, Channel]) -> None:
    sender, receiver = ends
    sent = 0
    while True:
        try:
            sender.send(Ready(sent))
        except ChannelFull:
            break
        sent += 1
        assert sent < 1_000_000
    assert sent > 0
    received = 0
    while receiver.wait(0):
        assert receiver.receive() == (Ready(received), [])
        received += 1
    assert received == sent
    sender.send(Stop())
    assert receiver.receive() == (Stop(), [])


def test_the_last_words_of_a_side_that_is_gone_are_read(ends: tuple[Channel, Channel]) -> None:
    sender, receiver = ends
    sender.send(Ready(1))
    sender.close()
    assert receiver.receive() == (Ready(1), [])
    assert receiver.receive() is None
    assert receiver.receive() is None


def test_sending_to_a_side_that_is_gone(ends: tuple[Channel, Channel]) -> None:
    sender, receiver = ends
    receiver.close()
    with pytest.raises(OSError, match="Broken pipe"):
        sender.send(Stop())


def test_a_side_that_goes_without_having_read(ends: tuple[Channel, Channel]) -> None:
    """Linux then says ECONNRESET once; it means the same."""
    sender, receiver = ends
    sender.send(Stop())
    receiver.close()
    assert sender.receive() is None
