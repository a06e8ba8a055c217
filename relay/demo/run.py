"""`relay demo`, the entry: looks for the demo extra, sets up a temporary directory and signals, and always cleans up.

Ctrl-C, SIGTERM and SIGHUP (the terminal was closed) end the demo in good order: devices say goodbye, the relay drains,
the hub ends, the directory goes.
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
    from relay.demo.rig import Rig  # at run time only once the extra is known to be there

EXTRA = ("amqtt", "paho", "trustme")  # packages of relay[demo], beyond what the relay itself needs


def main(once: bool) -> int:
    """Run the demo; the exit status. With `once`: a fixed number of messages, verified, instead of a live view."""
    if any(importlib.util.find_spec(name) is None for name in EXTRA):
        print("relay demo needs more than relay itself; in relay's source, `make demo` has it all")
        return 1
    return asyncio.run(_run(once))


async def _run(once: bool) -> int:
    # Imported here: they need the extra.
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
            finally:  # nobody may be reading any more
                killed = await rig.close()
    for name in killed:
        print(f"relay demo: {name} did not end when asked and was killed", file=sys.stderr)
    if work.cancelled():
        if once:
            print("stopped before everything was verified")
        else:
            print(_last_words(rig))
        return 1 if once or killed else 0
    try:
        status = work.result()
    except DemoError as error:
        print(f"relay demo: {error}", file=sys.stderr)
        return 1
    return 1 if killed else status or 0


def _last_words(rig: Rig) -> str:
    accounts = [device.account for device in rig.devices]
    return (
        f"stopped: {sum(one.sent for one in accounts)} messages sent,"
        f" {sum(one.acknowledged for one in accounts)} acknowledged,"
        f" {sum(rig.hub.received.values())} received by the hub"
    )
