"""The part of io_uring's interface that the ring engine uses, named as in the kernel's headers.

The numbers are from linux/io_uring.h, poll.h and sys/socket.h; a comment names the kernel that introduced one. System
call numbers are the same on x86-64 and arm64, as for every call added since Linux 5.1.
"""

from __future__ import annotations

import struct

SYS_io_uring_setup = 425
SYS_io_uring_enter = 426
SYS_io_uring_register = 427

# struct io_uring_params: ten words, then struct io_sqring_offsets and struct io_cqring_offsets, ten 32-bit words each.
PARAMS = struct.Struct("=40I")
PARAMS_CQ_ENTRIES, PARAMS_FLAGS, PARAMS_FEATURES = 1, 2, 5  # indices of its words
PARAMS_SQ_OFF, PARAMS_CQ_OFF = 10, 20
SQ_HEAD, SQ_TAIL, SQ_MASK, SQ_ENTRIES, SQ_FLAGS, SQ_DROPPED, SQ_ARRAY = range(7)
CQ_HEAD, CQ_TAIL, CQ_MASK, CQ_ENTRIES, CQ_OVERFLOW, CQ_CQES, CQ_FLAGS = range(7)

IORING_SQ_CQ_OVERFLOW = 1 << 1  # 5.8

IORING_SETUP_CQSIZE = 1 << 3
IORING_SETUP_R_DISABLED = 1 << 6  # 5.10
IORING_SETUP_SUBMIT_ALL = 1 << 7  # 5.18
IORING_SETUP_COOP_TASKRUN = 1 << 8  # 5.19
IORING_SETUP_SINGLE_ISSUER = 1 << 12  # 6.0
IORING_SETUP_DEFER_TASKRUN = 1 << 13  # 6.1

IORING_FEAT_SINGLE_MMAP = 1 << 0  # 5.4
IORING_FEAT_NODROP = 1 << 1  # 5.5
IORING_FEAT_CQE_SKIP = 1 << 11  # 5.17

IORING_OFF_SQ_RING = 0
IORING_OFF_SQES = 0x10000000

IORING_ENTER_GETEVENTS = 1 << 0
IORING_ENTER_REGISTERED_RING = 1 << 4  # 5.18

IORING_REGISTER_ENABLE_RINGS = 12
IORING_REGISTER_RING_FDS, IORING_UNREGISTER_RING_FDS = 20, 21  # 5.18
IORING_REGISTER_PBUF_RING = 22  # 5.19

# struct io_uring_rsrc_update {offset, resv, data};
# struct io_uring_buf_reg {ring_addr, ring_entries, bgid, flags, resv[3]};
# struct __kernel_timespec {tv_sec, tv_nsec}.
RSRC_UPDATE = struct.Struct("=IIQ")
BUF_REG = struct.Struct("=QIHHQQQ")
TIMESPEC = struct.Struct("=qq")

# struct io_uring_cqe {user_data, res, flags}
CQE = struct.Struct("=QiI")
CQE_SIZE = 16
IORING_CQE_F_BUFFER = 1 << 0
IORING_CQE_F_MORE = 1 << 1
IORING_CQE_BUFFER_SHIFT = 16

# struct io_uring_sqe, as the five 64-bit words that are not always zero:
#     opcode u8, flags u8, ioprio u16, fd s32 | off | addr | len u32, op_flags u32 | user_data
SQE = struct.Struct("=QQQQQ")
SQE_SIZE = 64
SQE_PAIR = struct.Struct("=QQQQQ24xQQQQQ")  # two consecutive ones
FD = 32  # by how many bits a field is shifted in its word
OP_FLAGS = 32
IOPRIO = 16

IORING_OP_POLL_ADD = 6
IORING_OP_SENDMSG = 9
IORING_OP_TIMEOUT = 11
IORING_OP_TIMEOUT_REMOVE = 12
IORING_OP_ACCEPT = 13
IORING_OP_ASYNC_CANCEL = 14
IORING_OP_CONNECT = 16
IORING_OP_CLOSE = 19
IORING_OP_SEND = 26
IORING_OP_RECV = 27

# Shifted to the position of an SQE's flags.
IOSQE_IO_HARDLINK = 1 << 3 << 8
IOSQE_BUFFER_SELECT = 1 << 5 << 8
IOSQE_CQE_SKIP_SUCCESS = 1 << 6 << 8  # 5.17
# Shifted to the position of its ioprio.
IORING_ACCEPT_MULTISHOT = 1 << 0 << IOPRIO  # 5.19
IORING_RECVSEND_POLL_FIRST = 1 << 0 << IOPRIO  # 5.19
IORING_RECV_MULTISHOT = 1 << 1 << IOPRIO  # 6.0

IORING_TIMEOUT_ABS = 1 << 0
IORING_TIMEOUT_UPDATE = 1 << 1  # 5.11

POLLIN, POLLOUT, POLLERR, POLLHUP = 0x1, 0x4, 0x8, 0x10

MSG_PEEK, MSG_TRUNC, MSG_DONTWAIT, MSG_WAITALL, MSG_NOSIGNAL = 0x2, 0x20, 0x40, 0x100, 0x4000
SOCK_CLOEXEC = 0x80000
AF_UNSPEC = 0
