"""What a side waits for, over every combination of the facts that decide it, whatever is under way when it is asked.

The ring is a stub that only records: `settle` lets cancelled operations complete until nothing changes any more. Each
test states one rule about the result.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast

from relay.engines.contract import Handler
from relay.engines.preread import PrereadBuffer
from relay.engines.ring import abi
from relay.engines.ring.interest import POLL_CANCELLING, READABLE, RESET, Interest
from relay.engines.ring.reactor import Reactor
from relay.engines.ring.records import ARMED, CANCELLING, Link, Side
from relay.engines.ring.slots import POLL_IN_TAG, Slots

OPEN, DROPPING, ENDED = "open", "dropping", "ended"
LIMIT = 8  # completions in which every side has settled


class Facts(NamedTuple):
    """How a side and its peer stand."""

    has_peer: bool
    preread: bool
    direction: str
    held: bytes | None  # by the peer; b"": nothing, but the peer takes nothing now
    finished: bool
    bulk: bool
    pressure: bool

    @property
    def open(self) -> bool:
        """Bytes of the side may be passed on now."""
        return self.has_peer and self.direction == OPEN and self.held is None


class Under(NamedTuple):
    """What is under way on the side: `Side.armed` and `Side.poll_in`."""

    armed: int
    poll_in: int


WITH_PEER = [
    Facts(True, *rest)
    for rest in itertools.product(
        (False, True), (OPEN, DROPPING, ENDED), (None, b"", b"x"), (False, True), (False, True), (False, True)
    )
]
# Before the upstream is connected nothing is held, cut, finished or bulk, and nothing is received by the ring.
WITHOUT_PEER = [
    Facts(False, preread, direction, None, False, False, pressure)
    for preread, direction, pressure in itertools.product((False, True), (OPEN, ENDED), (False, True))
]
POLLS = (0, RESET, READABLE, POLL_CANCELLING)
CASES = [
    *((facts, Under(armed, poll)) for facts in WITH_PEER for armed in (0, ARMED, CANCELLING) for poll in POLLS),
    *((facts, Under(0, poll)) for facts in WITHOUT_PEER for poll in POLLS),
]


class Ring:
    """A reactor and its slots, of which only what `Interest` calls is there; records what it submits."""

    def __init__(self) -> None:
        self.handlers: dict[int, Callable[[int, int, int], None]] = {}
        self.started: list[int] = []  # opcodes
        self.cancelled: list[int] = []  # user_data

    def push(self, word: int, _offset: int, _address: int, _length: int, _user_data: int) -> None:
        self.started.append(word & 0xFF)

    def cancel(self, user_data: int) -> None:
        self.cancelled.append(user_data)


class Stage:
    """A side that stands as `facts` say, with something under way, and the interest that is asked about it."""

    def __init__(self, interest: Interest, ring: Ring, facts: Facts, under: Under) -> None:
        self.interest, self.ring = interest, ring
        link = Link(cast(Handler, None))
        link.preread = PrereadBuffer(100) if facts.preread else None
        self.side = side = link.client = Side(1)
        side.link, side.fd = link, 100
        if facts.has_peer:
            side.peer = link.upstream = Side(2)
            side.peer.held = facts.held
        side.ended, side.dropping = facts.direction != OPEN, facts.direction == DROPPING
        side.finished, side.bulk = facts.finished, facts.bulk
        side.armed, side.poll_in = under
        side.busy = operations(side)
        interest.under_pressure = facts.pressure

    def watch(self) -> None:
        self.interest.watch(self.side)

    def settle(self) -> None:
        """Let what was cancelled complete, as the engine does: the side is asked about again each time."""
        side = self.side
        for _ in range(LIMIT):
            if side.armed == CANCELLING:
                side.armed = 0
            elif side.poll_in == POLL_CANCELLING:
                side.poll_in = 0
            else:
                return
            side.busy -= 1
            self.watch()
        raise AssertionError("something is cancelled again and again")


def operations(side: Side) -> int:
    """How many of the ring's operations the side's fields say are under way."""
    return bool(side.armed) + (side.poll_in in (READABLE, POLL_CANCELLING))


@contextlib.contextmanager
def stage(facts: Facts, under: Under) -> Iterator[Stage]:
    ring: Any = Ring()
    interest = Interest(cast(Reactor, ring), cast(Slots, ring), cast(Any, None), multishot=True)
    try:
        yield Stage(interest, ring, facts, under)
    finally:
        interest.close()


def settled(where: Callable[[Facts], bool] = lambda _facts: True) -> Iterator[tuple[Facts, Side, tuple[Facts, Under]]]:
    """Facts that fulfil a condition, with the side once it has settled; last the case, for the failure's message."""
    found = False
    for facts, under in CASES:
        if where(facts):
            found = True
            with stage(facts, under) as scene:
                scene.watch()
                scene.settle()
                yield facts, scene.side, (facts, under)
    assert found


def test_a_side_whose_peer_holds_bytes_is_not_received_from() -> None:
    for _, side, case in settled(lambda facts: facts.held is not None):
        assert not side.armed, case


def test_a_side_whose_peer_holds_bytes_is_read_only_to_drop_what_comes() -> None:
    for facts, side, case in settled(lambda facts: facts.held is not None and not facts.finished):
        assert (side.poll_in == READABLE) == (facts.direction == DROPPING), case


def test_a_side_that_has_ended_is_not_received_from() -> None:
    for _, side, case in settled(lambda facts: facts.direction != OPEN):
        assert not side.armed, case


def test_a_side_without_a_peer_is_not_received_from() -> None:
    for _, side, case in settled(lambda facts: not facts.has_peer):
        assert not side.armed, case


def test_an_open_side_is_received_from_and_not_polled() -> None:
    for _, side, case in settled(lambda facts: facts.open and not (facts.bulk or facts.pressure)):
        assert (side.armed, side.poll_in) == (ARMED, 0), case


def test_bulk_and_memory_pressure_make_an_open_side_polled_and_not_received_from() -> None:
    for _, side, case in settled(lambda facts: facts.open and (facts.bulk or facts.pressure)):
        assert (side.armed, side.poll_in) == (0, READABLE), case


def test_memory_pressure_makes_an_open_side_bulk_and_nothing_else_does() -> None:
    for facts, side, case in settled():
        assert side.bulk == (facts.bulk or (facts.open and facts.pressure)), case


def test_a_side_that_is_dropped_from_is_read_until_its_end() -> None:
    """Whatever its peer holds, and though FIN was sent to it: its own FIN is still to come."""
    for _, side, case in settled(lambda facts: facts.direction == DROPPING):
        assert side.poll_in == READABLE, case


def test_a_client_is_preread_until_its_upstream_is_connected_or_it_ends() -> None:
    for facts, side, case in settled(lambda facts: not facts.has_peer):
        assert side.poll_in == (READABLE if facts.preread and facts.direction == OPEN else RESET), case


def test_preread_bytes_do_not_count_once_there_is_a_peer() -> None:
    plain = {case: (side.armed, side.poll_in) for facts, side, case in settled(lambda facts: not facts.preread)}
    for facts, side, (_, under) in settled(lambda facts: facts.has_peer and facts.preread):
        assert (side.armed, side.poll_in) == plain[facts._replace(preread=False), under], (facts, under)


def test_a_side_that_is_not_read_is_watched_for_a_reset() -> None:
    """Blocked by its peer, or half-closed: a reset is noticed all the same, without a read."""
    for _, side, case in settled(
        lambda facts: facts.has_peer and not facts.open and facts.direction != DROPPING and not facts.finished
    ):
        assert (side.armed, side.poll_in) == (0, RESET), case


def test_a_blocked_side_that_was_sent_fin_is_watched_for_a_reset() -> None:
    for _, side, case in settled(lambda facts: facts.direction == OPEN and facts.held is not None and facts.finished):
        assert (side.armed, side.poll_in) == (0, RESET), case


def test_nothing_is_started_on_a_side_that_is_over_both_ways() -> None:
    """To a poll both ends closed in good order look like a reset."""
    for facts, under in CASES:
        if facts.direction == ENDED and facts.finished:
            with stage(facts, under) as scene:
                scene.watch()
                scene.settle()
                assert not scene.ring.started, (facts, under)
                assert not scene.side.armed, (facts, under)
                assert scene.side.poll_in != RESET or under.poll_in == RESET, (facts, under)


def test_no_side_that_still_has_something_to_come_is_forgotten() -> None:
    for _, side, case in settled(lambda facts: not (facts.direction == ENDED and facts.finished)):
        assert bool(side.armed) != bool(side.poll_in), case


def test_every_operation_under_way_is_counted() -> None:
    """Else the side's slot is given to another socket too early, or never."""
    for _, side, case in settled():
        assert side.busy == operations(side), case


def test_a_second_call_changes_nothing() -> None:
    for facts, under in CASES:
        with stage(facts, under) as scene:
            for complete in (False, True):
                scene.watch()
                if complete:
                    scene.settle()
                before = list(scene.ring.started), list(scene.ring.cancelled), scene.side.armed, scene.side.poll_in
                scene.watch()
                after = scene.ring.started, scene.ring.cancelled, scene.side.armed, scene.side.poll_in
                assert after == before, (facts, under)


def test_nothing_is_read_before_a_cancelled_receive_has_completed() -> None:
    """It may still bring messages, and what is read by then would overtake them."""
    for facts, under in CASES:
        with stage(facts, under) as scene:
            scene.watch()
            if scene.side.armed == CANCELLING:
                assert not scene.ring.started, (facts, under)


def test_only_what_is_under_way_is_cancelled_and_only_once() -> None:
    for facts, under in CASES:
        with stage(facts, under) as scene:
            scene.watch()
            scene.settle()
            slot, poll = scene.side.slot, scene.side.slot | POLL_IN_TAG
            assert scene.ring.cancelled.count(slot) <= (under.armed == ARMED), (facts, under)
            assert scene.ring.cancelled.count(poll) <= (under.poll_in == READABLE), (facts, under)
            assert set(scene.ring.cancelled) <= {slot, poll}, (facts, under)


def test_a_receive_and_a_poll_are_what_is_started() -> None:
    for facts, under in CASES:
        with stage(facts, under) as scene:
            scene.watch()
            scene.settle()
            assert set(scene.ring.started) <= {abi.IORING_OP_RECV, abi.IORING_OP_POLL_ADD}, (facts, under)


def test_nothing_happens_to_a_side_without_a_connection() -> None:
    for facts, under in CASES:
        with stage(facts, under) as scene:
            scene.side.link = None
            scene.watch()
            assert not scene.ring.started, (facts, under)
            assert not scene.ring.cancelled, (facts, under)
            assert (scene.side.armed, scene.side.poll_in) == under, (facts, under)
