"""One io_uring: set up, mapped, entered and unmapped through ctypes alone. Knows nothing of connections.

No memory barriers are needed: the ring belongs to one thread (SINGLE_ISSUER), which also does the kernel's part
(DEFER_TASKRUN: completions are posted only inside this thread's own io_uring_enter). Heads and tails are thus read by
the thread that wrote them, and a thread sees its own writes in order, on arm64 too.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import struct
from collections.abc import Callable

from relay.engines.ring import abi

# use_errno: ctypes keeps the errno of each call for get_errno(); the interpreter's own calls would overwrite it.
# No argument types: plain integers pass in half the time of a typed prototype. Addresses must be c_void_p (a plain
# integer is truncated to 32 bits). io_uring_enter's last argument, the size of what the one before points to, is left
# out: the kernel ignores it where that pointer is null.
_syscall = ctypes.CDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long
_NULL = ctypes.c_void_p(None)

FLAGS = (
    abi.IORING_SETUP_CQSIZE
    | abi.IORING_SETUP_R_DISABLED
    | abi.IORING_SETUP_SUBMIT_ALL
    | abi.IORING_SETUP_COOP_TASKRUN
    | abi.IORING_SETUP_SINGLE_ISSUER
    | abi.IORING_SETUP_DEFER_TASKRUN
)
FEATURES = abi.IORING_FEAT_SINGLE_MMAP | abi.IORING_FEAT_NODROP | abi.IORING_FEAT_CQE_SKIP
# Transient errors of io_uring_enter(2): a signal came; the kernel has no memory for a request now; the completion ring
# must be emptied first. Submissions that were not taken stay in the ring.
ENTER_ERRNOS = frozenset({errno.EINTR, errno.EAGAIN, errno.EBUSY})


class Uring:
    """A ring of `entries` submissions and `completions` completions (powers of two). Raises OSError.

    `sqes` is the submission ring's memory, `cqes` the completion ring's; `words` all heads and tails as 32-bit cells,
    at the indices `sq_head`, `sq_tail`, `cq_head` and `cq_tail`. It belongs to the thread that enters it first.
    """

    def __init__(self, entries: int, completions: int) -> None:
        self._fd = self._ring_fd = -1
        self._flags = 0
        self._enabled = False
        self.syscall: Callable[..., int] = _syscall
        self._maps: list[mmap.mmap] = []
        self._views: list[memoryview] = []
        params = ctypes.create_string_buffer(
            abi.PARAMS.pack(*(completions if i == 1 else FLAGS if i == 2 else 0 for i in range(30)), *[0] * 10)
        )
        fd = _syscall(abi.SYS_io_uring_setup, entries, ctypes.byref(params))
        if fd < 0:
            raise _error("io_uring_setup")
        self._fd = fd
        try:
            self._map(abi.PARAMS.unpack(params.raw[: abi.PARAMS.size]))
        except BaseException:
            self.close()
            raise
        self._ring_fd = fd

    def _map(self, params: tuple[int, ...]) -> None:
        missing = FEATURES & ~params[abi.PARAMS_FEATURES]
        if missing:
            raise OSError(errno.EOPNOTSUPP, f"io_uring lacks features {missing:#x}")
        sq = params[abi.PARAMS_SQ_OFF :]
        cq = params[abi.PARAMS_CQ_OFF :]
        self.entries, self.completions = params[0], params[1]
        size = max(sq[abi.SQ_ARRAY] + 4 * self.entries, cq[abi.CQ_CQES] + abi.CQE_SIZE * self.completions)
        rings = self._mmap(size, abi.IORING_OFF_SQ_RING)
        whole = self._view(memoryview(rings))
        self.words = self._view(whole[: size // 4 * 4].cast("I"))
        for i in range(self.entries):
            self.words[sq[abi.SQ_ARRAY] // 4 + i] = i  # entry i of the ring is always SQE i
        self.sq_head, self.sq_tail = sq[abi.SQ_HEAD] // 4, sq[abi.SQ_TAIL] // 4
        self._sq_flags = sq[abi.SQ_FLAGS] // 4
        self.cq_head, self.cq_tail = cq[abi.CQ_HEAD] // 4, cq[abi.CQ_TAIL] // 4
        self.cqes = self._view(whole[cq[abi.CQ_CQES] : cq[abi.CQ_CQES] + abi.CQE_SIZE * self.completions])
        self.sqes = self._mmap(self.entries * abi.SQE_SIZE, abi.IORING_OFF_SQES)

    def _mmap(self, size: int, offset: int) -> mmap.mmap:
        self._maps.append(mmap.mmap(self._fd, size, offset=offset))
        return self._maps[-1]

    def _view(self, view: memoryview) -> memoryview:
        self._views.append(view)
        return view

    def _register_descriptor(self) -> None:
        """Register the descriptor, which saves its look-up at each entry; the ring works without it as well.

        A registered descriptor belongs to the thread, as a descriptor belongs to the process.
        """
        update = ctypes.create_string_buffer(abi.RSRC_UPDATE.pack(0xFFFFFFFF, 0, self._fd), abi.RSRC_UPDATE.size)
        if _syscall(abi.SYS_io_uring_register, self._fd, abi.IORING_REGISTER_RING_FDS, update, 1) == 1:
            self._ring_fd = abi.RSRC_UPDATE.unpack(update.raw)[0]
            self._flags = abi.IORING_ENTER_REGISTERED_RING

    @property
    def closed(self) -> bool:
        return self._fd < 0

    @property
    def descriptor(self) -> int:
        """The ring's descriptor, -1 once it is closed."""
        return self._fd

    @property
    def overflowing(self) -> bool:
        """Whether the kernel keeps completions that had no room; an entry that waits brings them, in order."""
        return bool(self.words[self._sq_flags] & abi.IORING_SQ_CQ_OVERFLOW)

    def submit(self, count: int) -> None:
        """Submit `count` entries without waiting for completions or running deferred work. Raises OSError."""
        syscall, descriptor, flags = self.enabled()
        flags &= ~abi.IORING_ENTER_GETEVENTS
        if syscall(abi.SYS_io_uring_enter, descriptor, count, 0, flags, None) < 0:
            self.check()

    def enabled(self) -> tuple[Callable[..., int], int, int]:
        """The ring's entry: `syscall(SYS_io_uring_enter, descriptor, count, wait, flags, None)`, in this order.

        The call submits `count` entries, runs the kernel's deferred work, and waits for `wait` completions. It returns
        how many entries were taken, or -1: then call `check`. Raises ValueError if the ring is closed.
        """
        if not self._enabled:
            self._enable()
        return self.syscall, self._ring_fd, self._flags | abi.IORING_ENTER_GETEVENTS

    def check(self) -> None:
        """After an io_uring_enter that failed: raises OSError unless the error is transient (ENTER_ERRNOS)."""
        if ctypes.get_errno() not in ENTER_ERRNOS:
            raise _error("io_uring_enter")

    def _enable(self) -> None:
        """Enable the ring for this thread, the only one that may enter it from now on (io_register_enable_rings)."""
        if self._fd < 0:
            raise ValueError("the ring is closed")
        if _syscall(abi.SYS_io_uring_register, self._fd, abi.IORING_REGISTER_ENABLE_RINGS, _NULL, 0) < 0:
            raise _error("IORING_REGISTER_ENABLE_RINGS")
        self._enabled = True
        self._register_descriptor()

    def register_buffers(self, buffers: Buffers) -> None:
        """Provide buffers for receives, as group 0. Raises OSError."""
        reg = abi.BUF_REG.pack(buffers.ring_address, buffers.count, 0, 0, 0, 0, 0)
        if _syscall(abi.SYS_io_uring_register, self._fd, abi.IORING_REGISTER_PBUF_RING, reg, 1) < 0:
            raise _error("IORING_REGISTER_PBUF_RING")

    def close(self) -> None:
        """Close and unmap everything. The kernel cancels operations under way.

        To be called by the ring's thread: no other thread can unregister the descriptor, which keeps the ring alive
        until its thread ends.
        """
        if self._fd < 0:
            return
        if self._flags:
            update = abi.RSRC_UPDATE.pack(self._ring_fd, 0, 0)
            _syscall(abi.SYS_io_uring_register, self._fd, abi.IORING_UNREGISTER_RING_FDS, update, 1)
        os.close(self._fd)
        self._fd = self._ring_fd = -1
        self._flags = 0
        # A defect's traceback, for example, may still refer to a part, which is then unmapped with the last reference.
        for view in reversed(self._views):
            with contextlib.suppress(BufferError):
                view.release()
        for mapped in self._maps:
            with contextlib.suppress(BufferError):
                mapped.close()


class Buffers:
    """A ring of provided buffers (IORING_REGISTER_PBUF_RING): `count`, a power of two, of `size` bytes each.

    The kernel takes buffers in the order in which they lie in the ring, and position i always offers buffer i. Since
    they are given back in the order in which they were taken, the entries are never written again: only the tail moves.
    """

    def __init__(self, count: int, size: int) -> None:
        self.count, self.size = count, size
        self._memory = mmap.mmap(-1, count * size)
        self._ring = mmap.mmap(-1, count * 16)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self.ring_address = ctypes.addressof(ctypes.c_char.from_buffer(self._ring))
        self.view = memoryview(self._memory)
        self.address = [start + i * size for i in range(count)]
        for i in range(count):
            # struct io_uring_buf {addr u64, len u32, bid u16, resv u16}; the first entry's resv is the ring's tail.
            struct.pack_into("=QIHH", self._ring, i * 16, self.address[i], size, i, 0)
        self._tail = memoryview(self._ring)[14:16].cast("H")
        self._given = count
        self._tail[0] = count & 0xFFFF

    def give_back(self, count: int) -> None:
        """Let the kernel use again the `count` buffers that it took first."""
        self._given += count
        self._tail[0] = self._given & 0xFFFF

    def close(self) -> None:
        """Unmap the buffers, whose ring must be closed already."""
        self._tail.release()
        self.view.release()
        self.address.clear()


def _error(call: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{call}: {os.strerror(number)}")
