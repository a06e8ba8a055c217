"""Measuring relay beside HAProxy. Run as programs; nothing here is installed."""

from __future__ import annotations

import signal
import sys


def end_in_order() -> None:
    """SIGTERM unwinds what is under way, as Ctrl-C does: proxies and upstreams that were started end too."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
