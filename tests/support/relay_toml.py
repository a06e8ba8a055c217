"""Settings files for tests, as TOML text."""

from __future__ import annotations

import json
from collections.abc import Sequence

# All ports are chosen by the kernel. A test adds its listeners and tables.
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
    # A list of strings has the same form in JSON and in TOML.
    return f'[[listeners]]\nname = "{name}"\nbind = {json.dumps(bind)}\nupstream = {json.dumps(targets)}\n{more}\n'


def settings(*listeners: str, workers: int = 1, tables: str = "", checks: float = 0.0) -> str:
    """TOML: admin and health on free ports, `tables` of other settings, and the listeners.

    `checks` is the health-check interval in seconds. The default, 0, turns checks off: upstreams would count their
    connections among the clients'.
    """
    return SETTINGS.format(workers=workers, checks=checks) + tables + "\n" + "".join(listeners)
