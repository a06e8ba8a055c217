"""The control channel: messages arrive whole with their descriptors, and no side ever waits for the other."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import json
import os
import resource
import socket
import struct
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.ipc.channel import MAX_DESCRIPTORS, MAX_MESSAGE, Channel, ChannelFull, discard, pair
from relay.ipc.messages import (
    KINDS,
    AllUp,
    Apply,
    BadMessage,
    Barred,
    Checked,
    Drain,
    Failing,
    Log,
    Message,
    Ready,
    Resolved,
    Start,
    Stop,
    decode,
)
from relay.ipc.outbox import MAX_PENDING, Outbox
from tests.support.observe import descriptors


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    one, other = pair()
    channels = Channel(one), Channel(other)
    yield channels
    for channel in channels:
        channel.close()


START = Start(("127.0.0.1:8883",))
MESSAGES = [
    START,
    Apply(("127.0.0.1:8883", "[::1]:8883")),
    Ready(4711),
    Resolved("hub.example", ("203.0.113.1", "2001:db8::1")),
    Resolved("hub.example", ()),
    Barred(("10.0.0.4:443", "[::1]:443")),
    Checked(0, "2001:db8::1", 8883, False),
    AllUp(),
    Failing(("hub.example",)),
    Drain(60.0, 65.0),
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
    sender.send(START, [writing for _, writing in pipes])
    assert receiver.receive() == (Stop(), [])
    received = receiver.receive()
    assert received is not None
    message, descriptors = received
    assert message == START
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
        sender.send(START, [sock.fileno()] * MAX_DESCRIPTORS)
        received = receiver.receive()
        assert received is not None
        assert len(received[1]) == MAX_DESCRIPTORS
        for descriptor in received[1]:
            os.close(descriptor)
        with pytest.raises(ValueError, match=f"251 descriptors in one control message; at most {MAX_DESCRIPTORS}"):
            sender.send(START, [sock.fileno()] * (MAX_DESCRIPTORS + 1))


def test_the_longest_message_fits_and_a_longer_one_is_refused(ends: tuple[Channel, Channel]) -> None:
    sender, receiver = ends
    frame = len('{"kind": "log", "level": "", "logger": "", "text": "", "traceback": ""}')
    longest = Log("", "", "x" * (MAX_MESSAGE - frame))
    sender.send(longest)
    assert receiver.receive() == (longest, [])
    with pytest.raises(ValueError, match=f"a control message of {MAX_MESSAGE + 1} bytes; at most {MAX_MESSAGE}"):
        sender.send(Log("", "", "x" * (MAX_MESSAGE - frame + 1)))
    assert not receiver.wait(0)


RUBBISH = [
    b"\xff\xfe",
    b"null",
    b"[]",
    b"{}",
    b"[" * 100_000,
    b"9" * 10_000,
    b'{"kind": ["ready"], "pid": 1}',
    b'{"kind": {}, "pid": 1}',
    b'{"kind": null}',
    b'{"kind": "reset"}',
    b'{"kind": "__class__"}',
    b'{"kind": "ready"}',
    b'{"kind": "ready", "pid": "1"}',
    b'{"kind": "ready", "pid": true}',
    b'{"kind": "ready", "pid": 1.5}',
    b'{"kind": "ready", "pid": [1]}',
    b'{"kind": "ready", "pid": 1, "more": 2}',
    b'{"kind": "failing", "hosts": 5}',
    b'{"kind": "failing", "hosts": "hub.example"}',
    b'{"kind": "failing", "hosts": [1]}',
    b'{"kind": "failing", "hosts": [["hub.example"]]}',
    b'{"kind": "failing", "hosts": {"hub.example": 1}}',
    b'{"kind": "log", "level": 5, "logger": "", "text": ""}',
    b'{"kind": "log", "level": "error", "logger": null, "text": ""}',
    b'{"kind": "log", "level": "error", "logger": "", "text": "", "traceback": 0}',
    b'{"kind": "drain", "closed_at": "now", "over_at": 1}',
    b"x" * (MAX_MESSAGE + 1),
]


def raw(channel: Channel, data: bytes, descriptors: Sequence[int] = ()) -> None:
    """Send what no channel sends."""
    with socket.socket(fileno=os.dup(channel.fileno())) as sock:
        socket.send_fds(sock, [data], list(descriptors))


@pytest.mark.parametrize("data", RUBBISH, ids=lambda data: data[:60].decode("latin-1"))
def test_what_is_no_message_is_refused_and_the_next_one_is_read(ends: tuple[Channel, Channel], data: bytes) -> None:
    sender, receiver = ends
    gc.collect()  # what earlier tests have left is not to be closed meanwhile
    before = descriptors(os.getpid())
    with socket.socket() as sock:
        raw(sender, data, [sock.fileno(), 0])
    sender.send(Stop())
    with pytest.raises(BadMessage):
        receiver.receive()
    assert receiver.receive() == (Stop(), [])
    assert descriptors(os.getpid()) == before


@given(
    st.binary(max_size=200)
    | st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["kind", "pid", "hosts", "level"]), inner),
    ).map(lambda value: json.dumps(value).encode())
)
def test_rubbish_of_every_kind_is_a_message_or_a_bad_one(data: bytes) -> None:
    with contextlib.suppress(BadMessage):
        assert type(decode(data)) in KINDS.values()


def test_no_descriptor_is_left_of_an_end_that_brings_some(ends: tuple[Channel, Channel]) -> None:
    sender, receiver = ends
    before = descriptors(os.getpid())
    raw(sender, b"", [0, 0, 0])
    assert receiver.receive() is None
    assert descriptors(os.getpid()) == before


def test_descriptors_from_a_side_that_has_none_to_send(ends: tuple[Channel, Channel]) -> None:
    sender, receiver = ends
    before = descriptors(os.getpid())
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as lingering:
        # Whoever closes this one last would wait until the server has taken what nobody reads.
        lingering.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                lingering.send(b"x" * 65536)
        lingering.setblocking(True)
        lingering.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 3600))
        sender.send(Ready(1), [lingering.fileno(), 0])
        lingering.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 3600))
        os.close(lingering.detach())
        with pytest.raises(BadMessage, match="ready with descriptors"):
            receiver.hear()
    assert descriptors(os.getpid()) == before
    sender.send(Ready(1))
    assert receiver.hear() == Ready(1)


def test_a_kernel_that_refuses_descriptors_for_this_side(ends: tuple[Channel, Channel]) -> None:
    sender, receiver = ends
    receiver.refuse_descriptors()
    before = descriptors(os.getpid())
    try:
        sender.send(Ready(1), [0])
    except PermissionError:  # since Linux 6.16
        assert not receiver.wait(0)
    else:
        with pytest.raises(BadMessage, match="ready with descriptors"):
            receiver.hear()
    assert descriptors(os.getpid()) == before
    receiver.send(START, [0])  # its own arrive
    received = sender.receive()
    assert received is not None
    discard(received[1])


def test_nothing_to_receive_yet(ends: tuple[Channel, Channel]) -> None:
    with pytest.raises(BlockingIOError):
        ends[0].receive()


def test_a_descriptor_that_select_cannot_take() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2048:
        pytest.skip(f"needs 2048 descriptors; the limit is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    one, other = pair()
    high = socket.socket(fileno=fcntl.fcntl(one.fileno(), fcntl.F_DUPFD_CLOEXEC, 1024))
    try:
        channel, peer = Channel(high), Channel(other)
        assert not channel.wait(0)
        peer.send(Stop())
        assert channel.wait(1)
        assert channel.receive() == (Stop(), [])
    finally:
        for sock in (one, other, high):
            sock.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


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


# --- what a worker is told --------------------------------------------------------------------------------------------


class Names:
    """`count` names with one address each, and the outbox that sends their changes."""

    def __init__(self, channel: Channel, count: int) -> None:
        self.addresses = {f"hub{number}.example": "127.0.0.0" for number in range(count)}
        self.outbox = Outbox(channel, lambda: [Resolved(host, (text,)) for host, text in self.addresses.items()])

    def change(self, host: str, address: str) -> None:
        self.addresses[host] = address
        self.outbox.add(Resolved(host, (address,)))


def heard(channel: Channel, known: dict[str, str], most: int = 1_000_000) -> int:
    """Take what is there; how many messages that were."""
    count = 0
    while count < most and channel.wait(0):
        received = channel.receive()
        assert received is not None
        assert isinstance(received[0], Resolved)
        known[received[0].host] = received[0].addresses[0]
        count += 1
    return count


def test_a_worker_is_told_everything_and_then_each_change(ends: tuple[Channel, Channel]) -> None:
    known: dict[str, str] = {}
    names = Names(ends[0], 3)
    assert names.outbox.send()
    assert heard(ends[1], known) == 3
    names.change("hub1.example", "127.0.0.1")
    assert names.outbox.send()
    assert heard(ends[1], known) == 1
    assert known == names.addresses


def test_one_that_does_not_read_is_told_what_holds_when_it_does(ends: tuple[Channel, Channel]) -> None:
    known: dict[str, str] = {}
    names = Names(ends[0], 3)
    changes = 0
    while names.outbox.send():
        changes += 1
        names.change("hub1.example", f"127.0.0.{changes % 250}")
        assert changes < 100_000
    for _ in range(10_000):
        names.change("hub2.example", "127.0.1.1")
        assert not names.outbox.send()
    assert heard(ends[1], known) < changes + 3
    assert names.outbox.send()
    assert heard(ends[1], known) == 2, "the last change of each; not every one"
    assert known == names.addresses
    names.change("hub0.example", "127.0.2.2")
    assert names.outbox.send()
    assert heard(ends[1], known) == 1


def test_one_that_reads_slowly_catches_up_though_there_are_ever_more_changes(ends: tuple[Channel, Channel]) -> None:
    known: dict[str, str] = {}
    names = Names(ends[0], 2000)
    assert not names.outbox.send()
    for number in range(4000):
        names.change(f"hub{number % 2000}.example", f"127.0.0.{number % 250}")
        if names.outbox.send():
            break
        heard(ends[1], known, 2)
    else:
        raise AssertionError("two messages are read for each change, and still there are as many")
    heard(ends[1], known)
    assert known == names.addresses


def test_what_is_kept_for_one_that_does_not_read_is_bounded(ends: tuple[Channel, Channel]) -> None:
    asked = 0

    def everything() -> list[Message]:
        nonlocal asked
        asked += 1
        return [AllUp()]

    outbox = Outbox(ends[0], everything)
    for number in range(3 * MAX_PENDING):
        outbox.add(Checked(0, "127.0.0.1", number, False))
        outbox.send()
    assert 2 <= asked <= 4
    told: list[Message] = []
    done = False
    while not done:
        done = outbox.send()
        while ends[1].wait(0):
            received = ends[1].receive()
            assert received is not None
            told.append(received[0])
    assert told[-1] == Checked(0, "127.0.0.1", 3 * MAX_PENDING - 1, False)
    assert told.count(AllUp()) == 2, "everything: at first, and the last time that it was asked for"


def test_more_than_the_channel_has_room_for_is_told_in_parts(ends: tuple[Channel, Channel]) -> None:
    known: dict[str, str] = {}
    names = Names(ends[0], 2000)
    parts, count = 1, 0
    while not names.outbox.send():
        parts += 1
        count += heard(ends[1], known)
    count += heard(ends[1], known)
    assert known == names.addresses
    assert count == 2000, "each once"
    assert parts > 1


def test_what_changes_while_everything_is_told_is_not_lost(ends: tuple[Channel, Channel]) -> None:
    known: dict[str, str] = {}
    names = Names(ends[0], 2000)
    assert not names.outbox.send()
    names.change("hub0.example", "127.0.0.1")
    names.change("hub1999.example", "127.0.0.1")
    while not names.outbox.send():
        assert heard(ends[1], known)
    heard(ends[1], known)
    assert known == names.addresses


def test_an_outbox_to_a_worker_that_is_gone(ends: tuple[Channel, Channel]) -> None:
    names = Names(ends[0], 1)
    ends[1].close()
    with pytest.raises(OSError, match="Broken pipe"):
        names.outbox.send()
