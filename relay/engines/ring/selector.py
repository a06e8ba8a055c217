"""asyncio's selector, waiting in a ring: `asyncio.SelectorEventLoop(RingSelector())`, or `RingLoop()`.

asyncio hears of its own descriptors (control channel, resolver, wake-up) as from any selector; the clients' bytes move
inside `select`, which returns only when asyncio has something to do: one of its descriptors is ready, a timer is due,
or what happened to a connection has scheduled a callback or a timer (`RingLoop` takes note of that).

A descriptor is watched by a poll that fires once, and is armed again by the next `select`: so readiness is
level-triggered, as asyncio expects.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import selectors
import stat
from collections.abc import Iterator, Mapping
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

from relay.engines.ring import abi
from relay.engines.ring.reactor import GUEST, SILENT, SLOT_BITS, VALUE, Reactor

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
GUEST_TAG, SILENT_TAG = GUEST << SLOT_BITS, SILENT << SLOT_BITS

logger = logging.getLogger("relay.engine")


class HasFileno(Protocol):
    """An object with a descriptor."""

    def fileno(self) -> int: ...


FileDescriptorLike = int | HasFileno


class RingSelector(selectors.BaseSelector):
    """See the module. `reactor` is where an engine joins in. Raises OSError if there is no ring to be had."""

    def __init__(self) -> None:
        self.reactor = Reactor()
        self.reactor.handlers[GUEST] = self._completed
        self._keys: dict[int, selectors.SelectorKey] = {}  # by descriptor
        self._polls: dict[int, int] = {}  # descriptor: number of its poll, which is never used again
        self._watched: dict[int, int] = {}  # number of a poll under way: its descriptor
        self._fired: list[int] = []  # descriptors whose poll fired, to be armed again
        self._ready: list[tuple[selectors.SelectorKey, int]] = []
        self._next = 1
        self.called = False  # a callback or a timer was scheduled: `select` is to return

    def register(self, fileobj: FileDescriptorLike, events: int, data: Any = None) -> selectors.SelectorKey:
        if not events or events & ~(READ | WRITE):
            raise ValueError(f"Invalid events: {events!r}")
        fd = self._descriptor(fileobj)
        if fd in self._keys:
            raise KeyError(f"{fileobj!r} (FD {fd}) is already registered")
        # The poll is armed by the next turn; what it would refuse is said here, as epoll_ctl(2) would.
        if stat.S_ISREG(os.fstat(fd).st_mode) or stat.S_ISDIR(os.fstat(fd).st_mode):
            raise PermissionError(errno.EPERM, "regular files and folders cannot be waited for")
        key = self._keys[fd] = selectors.SelectorKey(fileobj, fd, events, data)
        self._arm(key)
        return key

    def unregister(self, fileobj: FileDescriptorLike) -> selectors.SelectorKey:
        try:
            key = self._keys.pop(self._descriptor(fileobj))
        except KeyError:
            raise KeyError(f"{fileobj!r} is not registered") from None
        self._disarm(key.fd)
        return key

    def modify(self, fileobj: FileDescriptorLike, events: int, data: Any = None) -> selectors.SelectorKey:
        if not events or events & ~(READ | WRITE):
            raise ValueError(f"Invalid events: {events!r}")
        fd = self._descriptor(fileobj)
        if fd not in self._keys:
            raise KeyError(f"{fileobj!r} is not registered")
        before = self._keys[fd]
        key = self._keys[fd] = before._replace(events=events, data=data)
        if events != before.events:
            self._disarm(fd)
            self._arm(key)
        return key

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self._arm_again()
        self.called = False
        turn, deadline = self.reactor.turn, None if timeout is None else monotonic() + timeout
        while True:
            left = None if deadline is None else deadline - monotonic()
            turn(0 if self._ready or (left is not None and left <= 0) else 1, left)
            # A signal ends the wait as well; its handler has run by now, and what is left of the time goes on.
            if self._ready or self.called or (left is not None and left <= 0):
                ready, self._ready = self._ready, []
                return ready

    def close(self) -> None:
        self._keys.clear()
        self._polls.clear()
        self._watched.clear()
        self.reactor.close()

    def get_key(self, fileobj: FileDescriptorLike) -> selectors.SelectorKey:
        if self.reactor.ring.closed:
            raise RuntimeError("Selector is closed")
        return super().get_key(fileobj)

    def get_map(self) -> Mapping[FileDescriptorLike, selectors.SelectorKey]:
        return _Registered(self)

    # --- polls ----------------------------------------------------------------------------------------------------

    def _arm(self, key: selectors.SelectorKey) -> None:
        number = self._next
        self._next += 1
        self._polls[key.fd] = number
        self._watched[number] = key.fd
        mask = (abi.POLLIN if key.events & READ else 0) | (abi.POLLOUT if key.events & WRITE else 0)
        self.reactor.push(
            abi.IORING_OP_POLL_ADD | key.fd << abi.FD, 0, 0, mask << abi.OP_FLAGS, GUEST_TAG | number << VALUE
        )

    def _disarm(self, fd: int) -> None:
        """Take the poll back. By its number: the descriptor may be closed, or another's, when the kernel looks."""
        number = self._polls.pop(fd)
        if self._watched.pop(number, None) is not None:
            self.reactor.push(
                abi.IORING_OP_POLL_REMOVE | abi.IOSQE_CQE_SKIP_SUCCESS, 0, GUEST_TAG | number << VALUE, 0, SILENT_TAG
            )

    def _arm_again(self) -> None:
        fired, self._fired = self._fired, []
        for fd in fired:
            key = self._keys.get(fd)
            # It may have been unregistered, and registered anew with a poll under way.
            if key is not None and self._polls[fd] not in self._watched:
                self._arm(key)

    def _completed(self, user_data: int, result: int, _flags: int) -> None:
        """A poll fired, or failed (a descriptor that was closed while it was registered)."""
        fd = self._watched.pop(user_data >> VALUE, None)
        if fd is None:
            return  # it was taken back meanwhile
        key = self._keys[fd]
        self._fired.append(fd)
        if result < 0:
            if result != -errno.EBADF:
                logger.error("poll of descriptor %d: %s", fd, os.strerror(-result))
            events = key.events
        else:
            events = (READ if result & ~abi.POLLOUT else 0) | (WRITE if result & ~abi.POLLIN else 0)
        if events & key.events:
            self._ready.append((key, events & key.events))

    def _descriptor(self, fileobj: FileDescriptorLike) -> int:
        """The descriptor of an object, also of one that is registered and has been closed since. Raises ValueError."""
        try:
            fd = fileobj if isinstance(fileobj, int) else int(fileobj.fileno())
        except (AttributeError, TypeError, ValueError):
            fd = -1
        if fd >= 0:
            return fd
        for key in self._keys.values():
            if key.fileobj is fileobj:
                return key.fd
        raise ValueError(f"Invalid file object: {fileobj!r}")


class _Registered(Mapping[FileDescriptorLike, selectors.SelectorKey]):
    """What `get_map` gives: keys by file object or descriptor, read-only."""

    def __init__(self, selector: RingSelector) -> None:
        self._selector = selector

    def __len__(self) -> int:
        return len(self._selector._keys)

    def __getitem__(self, fileobj: FileDescriptorLike) -> selectors.SelectorKey:
        try:
            return self._selector._keys[self._selector._descriptor(fileobj)]
        except KeyError:
            raise KeyError(f"{fileobj!r} is not registered") from None

    def __iter__(self) -> Iterator[FileDescriptorLike]:
        return iter(self._selector._keys)


class RingLoop(asyncio.SelectorEventLoop):
    """asyncio's own event loop on a ring. Raises OSError if there is no ring to be had."""

    def __init__(self) -> None:
        self.ring_selector = RingSelector()
        super().__init__(self.ring_selector)

    if not TYPE_CHECKING:  # the stubs want a variadic generic for the arguments, which Python 3.11 can hardly write

        def call_soon(self, callback, *args, context=None):
            self.ring_selector.called = True
            return super().call_soon(callback, *args, context=context)

        def call_at(self, when, callback, *args, context=None):
            self.ring_selector.called = True
            return super().call_at(when, callback, *args, context=context)
