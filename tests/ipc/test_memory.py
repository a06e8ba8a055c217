"""Shared files: everybody who has one may write to it, and nobody can make it shorter or longer under the others."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from relay.core.rates import RatePlan
from relay.ipc import memory
from relay.ipc.shared_rates import RateTable
from relay.ipc.shared_table import Table
from tests.ipc.tables import LAYOUT, PLAN
from tests.support.observe import descriptors

EVERY_WAY = """\
import fcntl, os, sys
descriptor, size = int(sys.argv[1]), int(sys.argv[2])
for descriptor in (descriptor, os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR)):
    for change in (
        lambda: os.ftruncate(descriptor, 0),
        lambda: os.ftruncate(descriptor, size - 1),
        lambda: os.ftruncate(descriptor, size + 1),
        lambda: os.posix_fallocate(descriptor, size, 4096),
        lambda: fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE),
    ):
        try:
            change()
        except PermissionError:
            continue
        sys.exit("it was changed")
"""


def table() -> int:
    return Table.create(PLAN, LAYOUT).descriptor


def rates() -> int:
    return RateTable.create(RatePlan()).descriptor


def orders() -> int:
    return memory.read_only("orders", b"serve" * 1000)


@pytest.fixture(params=[table, rates, orders])
def descriptor(request: pytest.FixtureRequest) -> Iterator[int]:
    make: Callable[[], int] = request.param
    made = make()
    yield made
    os.close(made)


def test_another_process_cannot_resize_it(descriptor: int) -> None:
    size = os.fstat(descriptor).st_size
    assert size
    subprocess.run([sys.executable, "-c", EVERY_WAY, str(descriptor), str(size)], pass_fds=[descriptor], check=True)
    assert os.fstat(descriptor).st_size == size


def test_orders_cannot_be_changed() -> None:
    made = orders()
    with pytest.raises(PermissionError):
        os.pwrite(made, b"x", 0)
    assert os.pread(made, 10_000, 0) == b"serve" * 1000
    os.close(made)


def test_a_kernel_that_does_not_know_of_files_that_cannot_be_executed(monkeypatch: pytest.MonkeyPatch) -> None:
    create = os.memfd_create
    asked: list[int] = []

    def old(name: str, flags: int) -> int:
        asked.append(flags)
        if flags & memory.MFD_NOEXEC_SEAL:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return create(name, flags)

    monkeypatch.setattr(os, "memfd_create", old)
    made = memory.shared("table", 4096)
    assert len(asked) == 2
    assert fcntl.fcntl(made, fcntl.F_GET_SEALS) == memory.SIZE_FIXED
    os.close(made)


@pytest.mark.parametrize("make", [lambda: memory.shared("table", 4096), orders])
def test_nothing_is_left_of_one_that_cannot_be_made(make: Callable[[], int], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    before = descriptors(os.getpid())
    monkeypatch.setattr(fcntl, "fcntl", fail)
    with pytest.raises(OSError, match="Cannot allocate memory"):
        make()
    assert descriptors(os.getpid()) == before
