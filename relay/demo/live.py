"""`relay demo` without --once: devices send until it is stopped, and the picture is redrawn twice a second."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.live import Live

from relay.demo import view
from relay.demo.rig import Rig, say

INTERVAL = 1.0  # seconds between a device's messages
REFRESH = 0.5  # seconds between pictures on a terminal
LINE = 2.0  # seconds between lines where there is no terminal


async def run_live(rig: Rig) -> None:
    """Start everything and show the traffic until this task is cancelled. Raises DemoError."""
    await rig.start()
    assert rig.relay is not None
    sending = asyncio.gather(*(device.run(None, INTERVAL) for device in rig.devices))
    try:
        console = Console(highlight=False, emoji=False)
        if sys.stdout.isatty() and not console.is_dumb_terminal:
            # Without rich's refresh thread: only this task draws.
            with Live(console=console, auto_refresh=False) as live:
                await _show(rig, sending, REFRESH, lambda picture: live.update(view.terminal(picture), refresh=True))
        else:
            say(f"look: {rig.relay.admin}/status  {rig.relay.admin}/metrics  {rig.relay.log}")
            say(f"      relay status --admin {rig.relay.admin}")
            await _show(rig, sending, LINE, lambda picture: say(view.line(picture)))
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)


async def _show(rig: Rig, sending: asyncio.Future[Any], seconds: float, draw: Callable[[view.Picture], None]) -> None:
    loop = asyncio.get_running_loop()
    started = loop.time()
    while not sending.done():
        rig.check()
        assert rig.relay is not None
        draw(
            view.Picture(
                seconds=loop.time() - started,
                devices=rig.devices,
                received=rig.hub.received,
                hub_pid=rig.hub.pid,
                admin=rig.relay.admin,
                log=rig.relay.log,
                config=rig.relay.config,
                status=await rig.relay.status(),
            )
        )
        await asyncio.wait({sending}, timeout=seconds)
    await sending  # devices send without end, so this raises the error that ended one
