"""Benchmarks and soaks: relay measured beside HAProxy. Programs to run from the source; none is installed."""

from __future__ import annotations

import signal
import sys


def end_in_order() -> None:
    """Make SIGTERM unwind the program as Ctrl-C does, so that started proxies and upstreams end as well."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
