"""Draws docs/images/demo.svg: what `relay demo` shows on a terminal after some seconds. Needs the demo extra."""

from __future__ import annotations

import asyncio
import io
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from relay.demo import live, view
from relay.demo.rig import Rig

SECONDS = 20.0


async def draw(target: Path) -> None:
    """Run the demo for a while, drawing each picture over the one before."""
    line = view.line

    def keep(picture: view.Picture) -> str:
        console = Console(record=True, width=80, file=io.StringIO(), force_terminal=True, highlight=False)
        console.print(view.terminal(picture))
        console.print()  # the picture ends with its last line's baseline, and would cut what is below
        target.write_text(console.export_svg(title="make demo"))
        return line(picture)

    view.line = keep  # what the live view calls where there is no terminal
    with tempfile.TemporaryDirectory(prefix="relay-demo-") as directory:
        rig = Rig(Path(directory))
        try:
            await asyncio.wait_for(live.run_live(rig), SECONDS)
        except TimeoutError:
            pass
        finally:
            await rig.close()


if __name__ == "__main__":
    asyncio.run(draw(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/images/demo.svg")))
