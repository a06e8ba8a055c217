"""Runs part of a test in a network namespace, where it may change routes, ports or packet filters."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.support.programs import ROOT, launched

T = TypeVar("T")

CLONE_NEWNET = 0x40000000  # sched.h
UNSHARE = [shutil.which("unshare") or "unshare", "--net", *(["--map-root-user"] if os.geteuid() else [])]


def _missing(*more: str) -> str:
    """Why no network namespace can be made, with `more` options of unshare(1); empty if one can."""
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        return "unshare (util-linux) or ip (iproute2) is not installed"
    done = subprocess.run([*UNSHARE, *more, "true"], capture_output=True, text=True)
    return "" if done.returncode == 0 else f"no namespace: {done.stderr.strip()}"


def nft(*arguments: str, text: str = "") -> str:
    """Run nft(8), for use inside such a namespace; returns its output."""
    done = subprocess.run(["nft", *arguments], input=text, text=True, check=True, stdout=subprocess.PIPE)
    return done.stdout


needs_nft = pytest.mark.skipif(shutil.which("nft") is None, reason="nft (nftables) is not installed")
needs_namespace = pytest.mark.skipif(bool(_missing()), reason=_missing())
needs_mounts = pytest.mark.skipif(bool(_missing("--mount")), reason=_missing("--mount"))


def inside(module: str, *arguments: Any, prepare: str = "true", mounts: bool = False) -> str:
    """Run a module in a new namespace with loopback up, after the shell commands `prepare`; returns its output.

    With `mounts`, mounts made by `prepare` are visible only there.
    """
    script = f'ip link set lo up && {prepare} && exec "$0" -m "$@"'
    done = subprocess.run(
        launched(
            [
                *UNSHARE,
                *(["--mount"] if mounts else []),
                "sh",
                "-c",
                script,
                sys.executable,
                module,
                *map(str, arguments),
            ]
        ),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=55,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def in_network_of(pid: int, make: Callable[[], T]) -> T:
    """Call `make` in the network namespace of a process: sockets that it makes stay there, whoever uses them then."""
    found: list[T] = []
    failed: list[BaseException] = []

    def enter() -> None:
        try:
            with Path(f"/proc/{pid}/ns/net").open() as namespace:
                if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "setns")
            found.append(make())
        except BaseException as error:  # noqa: BLE001  # raised again by the caller's thread
            failed.append(error)

    # setns(2) moves the calling thread alone, and this one ends with it.
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return found[0]
