"""Files that are replaced as a whole: a reader, a crash and a full disk find the old content or the new one."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from relay.commands.fetch_settings.http import FetchFailed

MODE = 0o644  # the service has a user of its own (DynamicUser=), and there is no secret in settings


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock on the folder of `path`, which is made if it is not there. Raises FetchFailed if another has it.

    The lock is the folder's own (flock(2)): it leaves no file behind, and ends with the process.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise FetchFailed(f"{path.parent}: {_why(error)}") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise FetchFailed(
                f"{path}: another `relay fetch-settings` is at work on it; wait for its end", again=True
            ) from None
        yield
    finally:
        os.close(descriptor)


def replace(path: Path, content: bytes) -> None:
    """Replace the file by one with this content, on the disk when this returns. Raises FetchFailed.

    A file that `path` leads to by symbolic links is replaced where it is. What an interrupted call has left beside it
    is overwritten by the next one.
    """
    target = Path(os.path.realpath(path))
    beside = target.with_name(f".{target.name}.new")
    try:
        try:
            _write(beside, content, target)
            beside.rename(target)
        except OSError:
            with contextlib.suppress(OSError):
                beside.unlink()
            raise
        _sync(target.parent)
    except OSError as error:
        raise FetchFailed(f"{path}: not written: {_why(error)}; what was there is unchanged") from None


def _write(beside: Path, content: bytes, target: Path) -> None:
    """Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        beside.unlink()
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, MODE)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fchmod(descriptor, MODE)  # whatever the umask
        with contextlib.suppress(OSError):  # not there yet, or this user may not give files away
            before = target.stat()
            if (before.st_uid, before.st_gid) != (os.geteuid(), os.getegid()):
                os.fchown(descriptor, before.st_uid, before.st_gid)
        os.fsync(descriptor)


def _sync(folder: Path) -> None:
    """Have the rename on the disk. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _why(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
