"""Settings files of the tests, as text: what a relay's operator would write."""

from __future__ import annotations

import json
from collections.abc import Sequence

# Ports of the kernel's choice; a test adds listeners and what it is about.
SETTINGS = """\
workers = {workers}
[admin]
bind = "127.0.0.1:0"
[health]
bind = "127.0.0.1:0"
[health_check]
interval = {checks}
"""


def listener(
    *upstream: tuple[str, int] | str, name: str = "main", bind: Sequence[str] = ("127.0.0.1:0",), more: str = ""
) -> str:
    """TOML: one listener in front of the upstreams."""
    targets = [item if isinstance(item, str) else f"{item[0]}:{item[1]}" for item in upstream]
    # A list of strings is written alike in JSON and in TOML.
    return f'[[listeners]]\nname = "{name}"\nbind = {json.dumps(bind)}\nupstream = {json.dumps(targets)}\n{more}\n'


def settings(*listeners: str, workers: int = 1, tables: str = "", checks: float = 0.0) -> str:
    """TOML: admin and health on free ports, `tables` of any other settings, and the listeners.

    Upstreams are checked every `checks` seconds, 0: not at all, for they would see connections that no client made.
    """
    return SETTINGS.format(workers=workers, checks=checks) + tables + "\n" + "".join(listeners)
