"""The entry point of `relay demo`: checks for the demo extra, sets up a directory and signals, and always cleans up.

Ctrl-C, SIGTERM and SIGHUP (the terminal was closed) end the demo in order: devices disconnect, the relay drains, the
hub ends, the temporary directory is removed.
"""

from __future__ import annotations

import asyncio
import importlib.util
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from relay.demo.rig import Rig  # at run time only after the check for the extra

EXTRA = ("amqtt", "paho", "trustme")  # packages of the extra relay-passthrough[demo]


def main(once: bool) -> int:
    """Run the demo; returns the exit status. `once`: a fixed number of messages, verified; else a live view."""
    if any(importlib.util.find_spec(name) is None for name in EXTRA):
        print("relay demo needs packages that relay itself does not; in relay's source tree, `make demo` installs them")
        return 1
    return asyncio.run(_run(once))


async def _run(once: bool) -> int:
    # Imported here, because they need the extra.
    from relay.demo.live import run_live
    from relay.demo.once import Journal, run_once
    from relay.demo.process import DemoError
    from relay.demo.rig import Rig

    asked = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, asked.set)

    # From here on a signal no longer ends the process at once, which would leave the directory behind.
    with tempfile.TemporaryDirectory(prefix="relay-demo-") as directory:
        journal = Journal()
        rig = Rig(Path(directory), keep=once, on_arrival=journal.add if once else None)
        work: asyncio.Task[int | None] = asyncio.create_task(run_once(rig, journal) if once else run_live(rig))
        stop = asyncio.create_task(asked.wait())
        try:
            await asyncio.wait({work, stop}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stop.cancel()
            work.cancel()
            await asyncio.gather(work, stop, return_exceptions=True)
            try:
                if asked.is_set():
                    print("stopping: devices, relay, hub", flush=True)
            finally:  # also if standard output is closed by now
                killed = await rig.close()
    for name in killed:
        print(f"relay demo: {name} did not end when asked and was killed", file=sys.stderr)
    if work.cancelled():
        if once:
            print("stopped before everything was verified")
        else:
            print(_summary(rig))
        return 1 if once or killed else 0
    try:
        status = work.result()
    except DemoError as error:
        print(f"relay demo: {error}", file=sys.stderr)
        return 1
    return 1 if killed else status or 0


def _summary(rig: Rig) -> str:
    accounts = [device.account for device in rig.devices]
    return (
        f"stopped: {sum(account.sent for account in accounts)} messages sent,"
        f" {sum(account.acknowledged for account in accounts)} acknowledged,"
        f" {sum(rig.hub.received.values())} received by the hub"
    )
