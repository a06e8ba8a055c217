"""One turn of the ring: submit the prepared operations, wait, and handle every completion that is there.

Most completions are a message of one side that its peer can take: these are handled here, in one loop, without a call.
All others go to the operation's own handler.

Theory of operation
- A receive is armed once and goes on (multishot); each message comes in a buffer that the kernel chose. The relay sends
  it on from that very buffer. The send does not wait (MSG_DONTWAIT), so it is over within the entry that submits it,
  and it is silent (IOSQE_CQE_SKIP_SUCCESS): only a send that failed or fell short posts a completion, with the bytes
  sent.
- So a buffer is free when the entry after the one that filled it is over and its completions are handled: buffers are
  given back once a turn, all that the turn before had used, in the order in which they were taken.
- A direction never has more than one send whose result is unknown; a second one could overtake the rest of the first.
  `Side.sent` is the number of the submission of its last send: below `completed` its result is known.
- A turn handles all completions that are there when it begins. It handles at most CHUNK of them before it checks the
  submission ring again, which therefore cannot overflow; when it is full it is submitted.
- The completion ring can overflow: the kernel keeps completions that have no room, and posts them later, in order. The
  failure of a send may then come behind messages that must not overtake the bytes not sent. So a turn that finds the
  ring full first takes everything out of the ring and the kernel, and looks for such failures, before it handles
  anything (`_catch_up`).
- A turn that brings one message is the most frequent one where devices are mostly silent. It follows a sleep, with cold
  caches: its path is one loop that calls nothing but the kernel.

user_data: bits 0 to 19 slot, 20 to 23 operation, the rest belongs to the operation.
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
SUBMIT_TRIES, SUBMIT_PAUSE = 1000, 0.001  # times, seconds: for a kernel that has no memory for a submission
CHUNK = 1024  # completions handled between two checks of the submission ring
FULL = ENTRIES - CHUNK - 2  # entries after which the ring is submitted: the rest has room for one chunk and a pair

SLOT_BITS, OPERATION_BITS = 20, 4
SLOTS = 1 << SLOT_BITS
SLOT_MASK = SLOTS - 1
OPERATION_MASK = (1 << OPERATION_BITS) - 1
VALUE_SHIFT = SLOT_BITS + OPERATION_BITS  # where the operation's own bits begin
BUFFER_MASK = 0xFFFF
LENGTH_SHIFT = VALUE_SHIFT + 16

# Operations. RECV is 0, so that its user_data is the slot.
RECV, SEND, SEND_MANY, CONNECT, ACCEPT, POLL_IN, POLL_OUT, SIDES_EPOLL, SILENT, LOOP_EPOLL, TIMER = range(11)
SENDS = frozenset({SEND, SEND_MANY})

SEND_WORD = abi.IORING_OP_SEND | abi.IOSQE_CQE_SKIP_SUCCESS
SEND_TAG = SEND << SLOT_BITS
# WAITALL: a send that takes only a part counts as a failure, and so posts its completion.
SEND_OP_FLAGS = (abi.MSG_WAITALL | abi.MSG_NOSIGNAL | abi.MSG_DONTWAIT) << abi.OP_FLAGS

Completed = Callable[[int, int, int], None]
"""Handles a completion: user_data, result, flags."""


class CompletionRingFull(Exception):
    """The completion ring is full, so the kernel may keep more completions. None of this turn has been handled."""


class Reactor:
    """The ring with its turn. `sides` are by slot, `handlers` by operation. Raises OSError if the kernel refuses."""

    def __init__(self) -> None:
        self.ring = ring = Uring(ENTRIES, COMPLETIONS)
        self.buffers: Buffers | None = None
        self.sides: list[Side] = []
        self.handlers: list[Completed] = [_ignore] * (1 << OPERATION_BITS)
        self.after_turn: Callable[[], bool] = _nothing  # called by `_cleanup`; True: to be called next turn as well
        self.returning = False  # `run` returns at the end of this turn
        self.cleanup_due = False  # `_cleanup` has work at the end of this turn
        self._pack, self._pack_pair = abi.SQE.pack_into, abi.SQE_PAIR.pack_into
        self._sqes = ring.sqes
        self._wrap = ring.entries - 1
        self.queued = 0  # submissions prepared so far: the number of the next one
        self.submitted = 0  # submissions below this number are submitted
        self.completed = 0  # sends below this number have a known result: a completion, or none since they went whole
        self._used = 0  # buffers used in the last turn
        self._unreturned = 0  # buffers used earlier and not given back, since the kernel refused an entry
        self._refused_turn = 0  # the turn whose entry did not take every submission
        self.batches: dict[int, SendBatch] = {}  # by slot: batches prepared in this turn
        self.sent_batches: dict[int, SendBatch] = {}  # those of the turn before: their results come in this one
        self._head = 0
        self.turns = 0

    def provide(self, count: int, size: int) -> Buffers:
        """Provide buffers for receives. Raises OSError."""
        buffers = Buffers(count, size)
        self.ring.register_buffers(buffers)
        self.buffers = buffers
        return buffers

    def push(self, word: int, offset: int, address: int, length: int, user_data: int) -> None:
        """Prepare a submission; `length` has op_flags in its upper 32 bits."""
        number = self.queued
        self._pack(self._sqes, (number & self._wrap) << 6, word, offset, address, length, user_data)
        self.queued = number = number + 1
        if number - self.submitted >= FULL:
            self.flush()

    def push_pair(
        self, word: int, offset: int, address: int, user_data: int, second_word: int, second_user_data: int
    ) -> None:
        """Prepare two submissions at once; the second has only its first word and its user_data."""
        number = self.queued
        at = number & self._wrap
        if at != self._wrap:
            self._pack_pair(
                self._sqes, at << 6, word, offset, address, 0, user_data, second_word, 0, 0, 0, second_user_data
            )
        else:  # one at the end of the submission ring, one at its beginning
            self._pack(self._sqes, at << 6, word, offset, address, 0, user_data)
            self._pack(self._sqes, 0, second_word, 0, 0, 0, second_user_data)
        self.queued = number = number + 2
        if number - self.submitted >= FULL:
            self.flush()

    def send(self, side: Side, buffer: int, size: int) -> None:
        """Prepare the send of a message from `side` to its peer. `side` must have no send whose result is unknown."""
        assert self.buffers is not None
        side.sent = self.queued
        tag = side.slot | SEND_TAG | buffer << VALUE_SHIFT | size << LENGTH_SHIFT
        self.push(side.word, 0, self.buffers.address[buffer], SEND_OP_FLAGS | size, tag)

    def flush(self) -> None:
        """Submit the prepared operations now, and mark the sides whose sends fell short (completions come later)."""
        ring = self.ring
        words = ring.words
        before = words[ring.cq_tail]
        words[ring.sq_tail] = self.queued & 0xFFFFFFFF
        for _ in range(SUBMIT_TRIES):
            ring.submit(self.queued - words[ring.sq_head] & 0xFFFFFFFF)
            self.submitted = self.queued - (self.queued - words[ring.sq_head] & 0xFFFFFFFF)
            if self.submitted == self.queued:
                break
            time.sleep(SUBMIT_PAUSE)  # the kernel has no memory for a request
        else:
            raise OSError(errno.EAGAIN, f"the ring takes no submissions: {self.queued - self.submitted} are waiting")
        self._find_short(self._completions(before, words[ring.cq_tail] - before & 0xFFFFFFFF))
        if not ring.overflowing:
            self.completed = self.submitted  # else the kernel may keep the completion of a failure

    def _find_short(self, completions: bytes | bytearray) -> None:
        """Mark the sides whose sends failed or fell short, before these completions are handled."""
        for user_data, _, _ in abi.CQE.iter_unpack(completions):
            if user_data >> SLOT_BITS & OPERATION_MASK in SENDS:
                side = self.sides[user_data & SLOT_MASK]
                side.short = True
                side.sent = NO_SUBMISSION

    def _completions(self, head: int, count: int) -> bytes:
        """A copy of `count` completions from `head` on."""
        first = head & self.ring.completions - 1
        split = min(count, self.ring.completions - first)
        cqes, size = self.ring.cqes, abi.CQE_SIZE
        return bytes(cqes[first * size : (first + split) * size]) + bytes(cqes[: (count - split) * size])

    def add_to_send(self, side: Side, buffer: int, size: int) -> bool:
        """Add a message to the side's send that is prepared and not submitted; False if there is none, or no room."""
        assert self.buffers is not None
        if not self.submitted <= side.sent < NO_SUBMISSION:
            return False
        batch = self.batches.get(side.slot)
        if batch is None or batch.number != side.sent:
            self.cleanup_due = True
            position = (side.sent & self._wrap) << 6
            _, _, address, flags_size, tag = abi.SQE.unpack_from(self._sqes, position)
            batch = self.batches[side.slot] = SendBatch(side.sent)
            batch.add(tag >> VALUE_SHIFT & BUFFER_MASK, address, flags_size & 0xFFFFFFFF)
            word = side.word - abi.IORING_OP_SEND + abi.IORING_OP_SENDMSG
            tag = side.slot | SEND_MANY << SLOT_BITS
            self._pack(self._sqes, position, word, 0, batch.address, SEND_OP_FLAGS | 1, tag)
        if batch.full:
            return False
        batch.add(buffer, self.buffers.address[buffer], size)
        return True

    def all_sent(self, side: Side) -> bool:
        """Whether it is certain that the peer has taken all bytes sent; submits prepared operations if necessary.

        If it is not certain and no send fell short, the next entry brings the result.
        """
        if self.submitted <= side.sent < NO_SUBMISSION:
            self.flush()
        return not side.short and not self.completed <= side.sent < NO_SUBMISSION

    def run(self) -> None:
        """Take turns until one of them sets `returning`; if it is set beforehand, take one turn without waiting.

        A turn submits, waits for a completion, and handles all that are there. Raises OSError.
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
                count = number - self.submitted
                wait = 0 if self.returning or words[cq_tail] != head else 1
                taken = syscall(abi.SYS_io_uring_enter, descriptor, count, wait, entry_flags, None)
                if taken == count:
                    self.submitted = self.completed = completed = number
                else:
                    completed = self._interrupted(taken)
                    if self.submitted != number:  # sends from these buffers are not submitted yet
                        self._unreturned, used = self._unreturned + used, 0
                self.turns += 1
                tail, used_before, used = words[cq_tail], used, 0
                try:
                    while head != tail:
                        if number - self.submitted >= FULL:
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
                                if side.sent < completed:
                                    side.sent = number
                                    side.received += result
                                    buffer = flags >> 16
                                    # 24 and 40: VALUE_SHIFT and LENGTH_SHIFT.
                                    pack(sqes, (number & wrap) << 6, side.word, 0, address[buffer],
                                         SEND_OP_FLAGS | result,
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
                except CompletionRingFull:
                    used = self._catch_up()
                    head, number = self._head, self.queued
                if self.cleanup_due:
                    self._cleanup()
                    number = self.queued
                if used_before:
                    assert buffers is not None
                    buffers.give_back(used_before)
                if self.returning:
                    return
        finally:
            self._used = used

    def turn(self) -> None:
        """Take one turn without waiting. Raises OSError."""
        self.returning = True
        self.run()

    def _interrupted(self, taken: int) -> int:
        """An entry did not take all submissions, or failed; returns the new `completed`. Raises OSError."""
        if taken < 0:
            self.ring.check()
        self.returning = True  # this may last, and the caller has timers of its own
        self.submitted = self.queued - (self.queued - self.ring.words[self.ring.sq_head] & 0xFFFFFFFF)
        if not self.ring.overflowing:
            self.completed = self.submitted
        if self.submitted != self.queued:
            self._refused_turn = self.turns + 1
            self.cleanup_due = True
        return self.completed

    def _chunk(self, head: int, count: int) -> tuple[Iterable[tuple[int, int, int]], int]:
        """The next contiguous completions, at most CHUNK, and the head behind them.

        Raises CompletionRingFull.
        """
        completions = self.ring.completions
        if count == completions:
            raise CompletionRingFull
        first = head & completions - 1
        count = min(count, CHUNK, completions - first)
        part = self.ring.cqes[first * abi.CQE_SIZE : (first + count) * abi.CQE_SIZE]
        return abi.CQE.iter_unpack(part), head + count & 0xFFFFFFFF

    def _catch_up(self) -> int:
        """Handle a turn that found the completion ring full; returns the number of buffers it used."""
        ring, words = self.ring, self.ring.words
        syscall, descriptor, entry_flags = ring.enabled()
        data, kept = bytearray(), True
        while kept:
            count = words[ring.cq_tail] - self._head & 0xFFFFFFFF
            data += self._completions(self._head, count)
            self._head = words[ring.cq_head] = self._head + count & 0xFFFFFFFF
            # The loop ends: completed operations are not submitted anew yet, and no buffer is given back.
            kept = ring.overflowing
            if kept and syscall(abi.SYS_io_uring_enter, descriptor, 0, 0, entry_flags, None) < 0:
                ring.check()
        self._find_short(data)
        used = 0
        for at in range(0, len(data), CHUNK * abi.CQE_SIZE):
            if self.queued - self.submitted >= FULL:
                self.flush()
            for user_data, result, flags in abi.CQE.iter_unpack(data[at : at + CHUNK * abi.CQE_SIZE]):
                used += flags & abi.IORING_CQE_F_BUFFER
                self.handlers[user_data >> SLOT_BITS & OPERATION_MASK](user_data, result, flags)
        return used

    def _cleanup(self) -> None:
        """The work at the end of those turns that have any (`cleanup_due`)."""
        if self._refused_turn == self.turns:
            return  # submissions not taken have their results in a later turn: until then all stays as it is
        self.sent_batches, self.batches = self.batches, {}
        if self._unreturned and self.buffers is not None:
            self.buffers.give_back(self._unreturned)
            self._unreturned = 0
        self.cleanup_due = self.after_turn() or bool(self.sent_batches)

    def detach(self) -> None:
        """Forget an engine that closes: its handlers are not called any more."""
        self.handlers[:LOOP_EPOLL] = [_ignore] * LOOP_EPOLL
        self.after_turn = _nothing
        self.sides.clear()

    def close(self) -> None:
        """Close the ring, then unmap its memory."""
        self.ring.close()
        if self.buffers is not None:
            self.buffers.close()


def _ignore(_user_data: int, _result: int, _flags: int) -> None:
    pass


def _nothing() -> bool:
    return False
