"""One turn of the ring: submit what was prepared, wait, and handle every completion that is there.

What most completions are, a message of one side that its peer can take, is handled here, in one loop, without a call.
Everything else goes to the operation's own handler.

Theory of operation
- A receive is armed once and goes on (multishot); each message comes in a buffer that the kernel chose. The answer is a
  send from that very buffer: not waited for (MSG_DONTWAIT), so it is over within the entry that submits it, and silent
  (IOSQE_CQE_SKIP_SUCCESS): only a send that failed or fell short posts a completion, which says how much went.
- So a buffer is free again when the entry after the one that filled it is over and its completions are handled: buffers
  go back once a turn, all that the turn before had used, in the order in which they were taken.
- A direction never has more than one send whose result is not known; a second one could overtake the rest of the first.
  `Side.sent` is the number of the submission that was its last send: below `start` its result is known.
- A turn handles all completions that are there when it begins. It looks at no more than CHUNK of them between two looks
  at the submission ring, which therefore cannot overflow; when it is full it is submitted.
- The completion ring can: what has no room in it the kernel keeps, and tells later, in order. The failure of a send may
  then come behind messages that must not overtake what it left. So a turn that finds the ring full takes everything out
  of it and of the kernel first, and looks for such failures, before it handles anything (`_catch_up`).
- A turn that brings one message is the most frequent one where devices are mostly silent, and it comes out of a sleep,
  with cold caches: what it passes through is one loop that calls nothing but the kernel.

user_data: bits 0 to 19 slot, 20 to 23 operation, the rest is the operation's own.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from relay.engines.ring import abi
from relay.engines.ring.records import NO_SUBMISSION
from relay.engines.ring.send_batch import SendBatch
from relay.engines.ring.uring import Buffers, Uring

if TYPE_CHECKING:
    from relay.engines.ring.records import Side

ENTRIES = 4096
COMPLETIONS = 16384
TRIES, TRY_AGAIN = 1000, 0.001  # seconds; how long to bear with a kernel that takes no submissions
CHUNK = 1024  # completions handled between two looks at the submission ring
FULL = ENTRIES - CHUNK - 2  # entries after which the ring is submitted: the rest is for one chunk, and a pair

SLOT_BITS, OPERATION_BITS = 20, 4
SLOTS = 1 << SLOT_BITS
SLOT_MASK = SLOTS - 1
OPERATION_MASK = (1 << OPERATION_BITS) - 1
VALUE = SLOT_BITS + OPERATION_BITS  # where the operation's own bits begin
BUFFER_MASK = 0xFFFF
LENGTH = VALUE + 16

# Operations. RECV is 0, so that its user_data is the slot.
RECV, SEND, SEND_MANY, CONNECT, ACCEPT, POLL_IN, POLL_OUT, SIDES_EPOLL, SILENT, LOOP_EPOLL, TIMER = range(11)
SENDS = frozenset({SEND, SEND_MANY})

SEND_WORD = abi.IORING_OP_SEND | abi.IOSQE_CQE_SKIP_SUCCESS
SEND_TAG = SEND << SLOT_BITS
# WAITALL: a send that takes only a part is a failure, and so posts its completion.
QUIET = (abi.MSG_WAITALL | abi.MSG_NOSIGNAL | abi.MSG_DONTWAIT) << abi.OP_FLAGS

Completed = Callable[[int, int, int], None]
"""Handles a completion: user_data, result, flags."""


class Overfull(Exception):
    """The completion ring is full, so the kernel may keep more. Nothing of this turn has been handled."""


class Reactor:
    """The ring with its turn. `sides` are by slot; `handlers` by operation. Raises OSError if there is no ring."""

    def __init__(self) -> None:
        self.ring = ring = Uring(ENTRIES, COMPLETIONS)
        self.buffers: Buffers | None = None
        self.sides: list[Side] = []
        self.handlers: list[Completed] = [_ignore] * (1 << OPERATION_BITS)
        self.after_turn: Callable[[], bool] = _nothing  # ends a turn that set `tidy`; True: the next one as well
        self.returning = False  # `run` is to return at the end of this turn
        self.tidy = False  # there is something to do at the end of this turn
        self._pack, self._pack_pair = abi.SQE.pack_into, abi.SQE_PAIR.pack_into
        self._sqes = ring.sqes
        self._wrap = ring.entries - 1
        self.queued = 0  # submissions prepared so far, ever: the number of the next one
        self.mark = 0  # those before are submitted
        self.start = 0  # those before have a result that is known: it was told, or they went whole
        self._used = 0  # buffers taken in the last turn
        self._kept = 0  # those taken before that did not go back, since the kernel refused an entry
        self._refused = 0  # the turn whose entry did not take everything
        self.bursts: dict[int, SendBatch] = {}  # by slot: sends of several messages prepared in this turn
        self.sent_bursts: dict[int, SendBatch] = {}  # in the turn before: their results come in this one
        self._head = 0
        self.turns = 0

    def provide(self, count: int, size: int) -> Buffers:
        """Make buffers for receives. Raises OSError."""
        buffers = Buffers(count, size)
        self.ring.register_buffers(buffers)
        self.buffers = buffers
        return buffers

    def push(self, word: int, offset: int, address: int, length: int, user_data: int) -> None:
        """Prepare a submission; `length` has op_flags in its upper half."""
        number = self.queued
        self._pack(self._sqes, (number & self._wrap) << 6, word, offset, address, length, user_data)
        self.queued = number = number + 1
        if number - self.mark >= FULL:
            self.flush()

    def push_pair(
        self, word: int, offset: int, address: int, user_data: int, second_word: int, second_user_data: int
    ) -> None:
        """Prepare two submissions at once, the second with nothing but its first word."""
        number = self.queued
        at = number & self._wrap
        if at != self._wrap:
            self._pack_pair(
                self._sqes, at << 6, word, offset, address, 0, user_data, second_word, 0, 0, 0, second_user_data
            )
        else:  # one at the end of the ring, one at its beginning
            self._pack(self._sqes, at << 6, word, offset, address, 0, user_data)
            self._pack(self._sqes, 0, second_word, 0, 0, 0, second_user_data)
        self.queued = number = number + 2
        if number - self.mark >= FULL:
            self.flush()

    def send(self, side: Side, buffer: int, size: int) -> None:
        """Prepare the send of a received message to the peer. Its side must have no send whose result is not known."""
        assert self.buffers is not None
        side.sent = self.queued
        tag = side.slot | SEND_TAG | buffer << VALUE | size << LENGTH
        self.push(side.word, 0, self.buffers.address[buffer], QUIET | size, tag)

    def flush(self) -> None:
        """Submit what is prepared, now; learn which sends failed or fell short, though their completions come later."""
        ring = self.ring
        words = ring.words
        before = words[ring.cq_tail]
        words[ring.sq_tail] = self.queued & 0xFFFFFFFF
        for _ in range(TRIES):
            ring.submit(self.queued - words[ring.sq_head] & 0xFFFFFFFF)
            self.mark = self.queued - (self.queued - words[ring.sq_head] & 0xFFFFFFFF)
            if self.mark == self.queued:
                break
            time.sleep(TRY_AGAIN)  # the kernel has no memory for a request
        else:
            raise OSError(errno.EAGAIN, f"the ring takes no submissions: {self.queued - self.mark} are waiting")
        self._find_short(self._completions(before, words[ring.cq_tail] - before & 0xFFFFFFFF))
        if not ring.overflowing:
            self.start = self.mark  # else a failure may be among what the kernel keeps

    def _find_short(self, completions: bytes | bytearray) -> None:
        """Take note of the sends that failed or fell short, before their completions are handled."""
        for user_data, _, _ in abi.CQE.iter_unpack(completions):
            if user_data >> SLOT_BITS & OPERATION_MASK in SENDS:
                side = self.sides[user_data & SLOT_MASK]
                side.short = True
                side.sent = NO_SUBMISSION

    def _completions(self, head: int, count: int) -> bytes:
        """A copy of so many completions from there on."""
        first = head & self.ring.completions - 1
        split = min(count, self.ring.completions - first)
        cqes, size = self.ring.cqes, abi.CQE_SIZE
        return bytes(cqes[first * size : (first + split) * size]) + bytes(cqes[: (count - split) * size])

    def join(self, side: Side, buffer: int, size: int) -> bool:
        """Add a message to the send of the same side that is prepared and not submitted; False if it cannot be."""
        assert self.buffers is not None
        if not self.mark <= side.sent < NO_SUBMISSION:
            return False
        burst = self.bursts.get(side.slot)
        if burst is None or burst.number != side.sent:
            self.tidy = True
            position = (side.sent & self._wrap) << 6
            _, _, address, quiet_size, tag = abi.SQE.unpack_from(self._sqes, position)
            burst = self.bursts[side.slot] = SendBatch(side.sent)
            burst.add(tag >> VALUE & BUFFER_MASK, address, quiet_size & 0xFFFFFFFF)
            word = side.word - abi.IORING_OP_SEND + abi.IORING_OP_SENDMSG
            self._pack(self._sqes, position, word, 0, burst.address, QUIET | 1, side.slot | SEND_MANY << SLOT_BITS)
        if burst.full:
            return False
        burst.add(buffer, self.buffers.address[buffer], size)
        return True

    def known(self, side: Side) -> bool:
        """Whether it is certain that the peer has taken everything; submits what is prepared if it has to.

        If not, and nothing fell short, the next entry will tell.
        """
        if self.mark <= side.sent < NO_SUBMISSION:
            self.flush()
        return not side.short and not self.start <= side.sent < NO_SUBMISSION

    def run(self) -> None:
        """Take turns until one of them sets `returning`. Where it is set beforehand: one turn, without waiting.

        A turn submits, waits for a completion, and handles all that there are. Raises OSError.
        """
        ring, handlers, sides, pack, unpack = self.ring, self.handlers, self.sides, self._pack, abi.CQE.unpack_from
        words, sqes, cqes, wrap, mask = ring.words, self._sqes, ring.cqes, self._wrap, ring.completions - 1
        sq_tail, cq_tail, cq_head = ring.sq_tail, ring.cq_tail, ring.cq_head
        syscall, descriptor, entry_flags = ring.enabled()
        buffers = self.buffers
        address = buffers.address if buffers is not None else []
        head, used, number = self._head, self._used, self.queued
        try:
            while True:
                words[sq_tail] = number & 0xFFFFFFFF
                count = number - self.mark
                wait = 0 if self.returning or words[cq_tail] != head else 1
                taken = syscall(abi.SYS_io_uring_enter, descriptor, count, wait, entry_flags, None)
                if taken == count:
                    self.mark = self.start = start = number
                else:
                    start = self._interrupted(taken)
                    if self.mark != number:  # sends from these buffers are not submitted yet
                        self._kept, used = self._kept + used, 0
                self.turns += 1
                tail, used_before, used = words[cq_tail], used, 0
                try:
                    while head != tail:
                        if number - self.mark >= FULL:
                            self.flush()
                        left = tail - head & 0xFFFFFFFF
                        if left == 1:
                            part: Iterable[tuple[int, int, int]] = (unpack(cqes, (head & mask) << 4),)
                            head = tail
                        else:
                            part, head = self._chunk(head, left)
                        for user_data, result, flags in part:
                            if flags & 3 == 3:  # F_BUFFER and F_MORE: a message, and the receive goes on
                                side = sides[user_data]
                                used += 1
                                if side.sent < start:
                                    side.sent = number
                                    side.received += result
                                    buffer = flags >> 16
                                    # 24 and 40: VALUE and LENGTH.
                                    pack(sqes, (number & wrap) << 6, side.word, 0, address[buffer], QUIET | result,
                                         user_data | SEND_TAG | buffer << 24 | result << 40)  # fmt: skip
                                    number += 1
                                    continue
                            elif flags & 1:
                                used += 1
                            self.queued = number
                            handlers[user_data >> 20 & 15](user_data, result, flags)  # SLOT_BITS, OPERATION_MASK
                            number = self.queued
                        self.queued = number
                        self._head = words[cq_head] = head
                except Overfull:
                    used = self._catch_up()
                    head, number = self._head, self.queued
                if self.tidy:
                    self._tidy()
                    number = self.queued
                if used_before:
                    assert buffers is not None
                    buffers.give_back(used_before)
                if self.returning:
                    return
        finally:
            self._used = used

    def turn(self) -> None:
        """One turn, without waiting."""
        self.returning = True
        self.run()

    def _interrupted(self, taken: int) -> int:
        """An entry did not take all submissions, or did not wait; the submissions taken, ever. Raises OSError."""
        if taken < 0:
            self.ring.check()
        self.returning = True  # this may go on for long, and whoever called has timers of its own
        self.mark = self.queued - (self.queued - self.ring.words[self.ring.sq_head] & 0xFFFFFFFF)
        if not self.ring.overflowing:
            self.start = self.mark
        if self.mark != self.queued:
            self._refused = self.turns + 1
            self.tidy = True
        return self.start

    def _chunk(self, head: int, count: int) -> tuple[Iterable[tuple[int, int, int]], int]:
        """The next completions that lie one behind the other, CHUNK at most, and where those behind them begin.

        Raises Overfull.
        """
        completions = self.ring.completions
        if count == completions:
            raise Overfull
        first = head & completions - 1
        count = min(count, CHUNK, completions - first)
        part = self.ring.cqes[first * abi.CQE_SIZE : (first + count) * abi.CQE_SIZE]
        return abi.CQE.iter_unpack(part), head + count & 0xFFFFFFFF

    def _catch_up(self) -> int:
        """Handle a turn that has brought more completions than there is room for; returns how many buffers it took."""
        ring, words = self.ring, self.ring.words
        syscall, descriptor, entry_flags = ring.enabled()
        data, kept = bytearray(), True
        while kept:
            count = words[ring.cq_tail] - self._head & 0xFFFFFFFF
            data += self._completions(self._head, count)
            self._head = words[ring.cq_head] = self._head + count & 0xFFFFFFFF
            # It ends: what was told of is not begun anew, and no buffer goes back.
            kept = ring.overflowing
            if kept and syscall(abi.SYS_io_uring_enter, descriptor, 0, 0, entry_flags, None) < 0:
                ring.check()
        self._find_short(data)
        used = 0
        for at in range(0, len(data), CHUNK * abi.CQE_SIZE):
            if self.queued - self.mark >= FULL:
                self.flush()
            for user_data, result, flags in abi.CQE.iter_unpack(data[at : at + CHUNK * abi.CQE_SIZE]):
                used += flags & abi.IORING_CQE_F_BUFFER
                self.handlers[user_data >> SLOT_BITS & OPERATION_MASK](user_data, result, flags)
        return used

    def _tidy(self) -> None:
        """What has to be done at the end of some turns only."""
        if self._refused == self.turns:
            return  # what is not submitted has its results in a later turn: until then all stays as it is
        self.sent_bursts, self.bursts = self.bursts, {}
        if self._kept and self.buffers is not None:
            self.buffers.give_back(self._kept)
            self._kept = 0
        self.tidy = self.after_turn() or bool(self.sent_bursts)

    def leave(self) -> None:
        """An engine goes: its handlers are called no more."""
        self.handlers[:LOOP_EPOLL] = [_ignore] * LOOP_EPOLL
        self.after_turn = _nothing
        self.sides.clear()

    def close(self) -> None:
        """Close the ring, then let go of its memory."""
        self.ring.close()
        if self.buffers is not None:
            self.buffers.close()


def _ignore(_user_data: int, _result: int, _flags: int) -> None:
    pass


def _nothing() -> bool:
    return False
