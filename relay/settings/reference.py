"""Writes the configuration reference: `python -m relay.settings.reference > docs/configuration.md`.

Everything about single settings comes from the models; only the introduction is written here. A test compares the file
with this module's output. A running relay does not use this module.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from pydantic import BaseModel

from relay.settings.model import Settings
from relay.settings.names import RENAMED, variable
from relay.settings.schema import Kind, Setting, fields_of

_INTRODUCTION = """\
# Configuration

<!-- Generated: python -m relay.settings.reference > docs/configuration.md -->

One setting is enough to start:

```toml
upstream = ["myhub.azure-devices.net"]
```

relay then listens on 443, 8883 and 5671, and passes each connection on to the hub at the same port.

## Where settings come from

1. The defaults below.
2. The TOML file of `--config FILE`. Without `--config`, relay reads no file.
3. The environment, which wins. A variable is the setting's name in capitals with `RELAY_` before it and two
   underscores for each dot: `limits.max_connections` is `RELAY_LIMITS__MAX_CONNECTIONS`.

`relay config` prints the effective settings as a file that can be used as it is. `relay check` prints the mistakes.

In the environment, a list is separated by commas (`RELAY_UPSTREAM=a.example,b.example`) or written as JSON; a list of
tables is JSON; a boolean is `true` or `false`. An empty variable is an empty string or an empty list, and so overrides
what the file sets. A list in the environment replaces the file's list and does not add to it.

## Rules for all settings

- Durations are in seconds and sizes in bytes, both without a unit: `300`, not `"5m"`.
- 0 or empty means off, unless the setting's meaning says otherwise.
- Types are not converted: in TOML `workers = "4"` is a mistake, and so are `workers = 4.0` and `workers = true`.
- An unknown name is a mistake, in the file and in the environment, where every variable that begins with `RELAY_`
  counts. Kubernetes sets such variables for a Service named `relay`; `enableServiceLinks: false` in the pod turns that
  off.
- IPv6 addresses are in brackets where a port follows: `[fd00::1]:8883`. Zone ids are refused. Names beyond ASCII are
  written in their `xn--` form.
- A setting that was renamed can be given under its old name until the version that ends it, with a warning that names
  the file's line or the variable, the new name and that version. Both names in one place are a mistake; otherwise the
  environment wins, whichever name is where.
- Every mistake is one line on standard error that names the setting and what it may be; all mistakes are printed
  together, and the exit status is 2. Status 1 means that the settings are right but do not work on this machine now: a
  port in use, an address that the machine does not have, too few descriptors, a settings file that cannot be read.
  `relay check` and `relay run` report both in the same way.

## Where clients connect

Set either `upstream`, or one `[[listeners]]` for each service. The `upstream` line above is short for:

```toml
[[listeners]]
name = "https"
bind = ["0.0.0.0:443", "[::]:443"]
upstream = ["myhub.azure-devices.net:443"]

[[listeners.routes]]
name = "myhub.device"
sni = ["myhub.device.azure-devices.net"]
upstream = ["myhub.device.azure-devices.net:443"]
optional = true

[[listeners]]
name = "mqtt"
bind = ["0.0.0.0:8883", "[::]:8883"]
upstream = ["myhub.azure-devices.net:8883"]

[[listeners.routes]]
name = "myhub.device"
sni = ["myhub.device.azure-devices.net"]
upstream = ["myhub.device.azure-devices.net:8883"]
optional = true

[[listeners]]
name = "amqp"
bind = ["0.0.0.0:5671", "[::]:5671"]
upstream = ["myhub.azure-devices.net:5671"]

[[listeners.routes]]
name = "myhub.device"
sni = ["myhub.device.azure-devices.net"]
upstream = ["myhub.device.azure-devices.net:5671"]
optional = true
```

The routes are there for hosts `NAME.azure-devices.net` only: devices with TLS 1.3 ask for a name of their own, at which
the hub has another address. While that name does not resolve, its route is off, and the listener is as if it had none.

Further hubs, the provisioning service and a storage account are `[[routes]]` beside `upstream`, without ports, or in
place of it: then other names are refused. See [Several hubs and provisioning on one address](how-to/several-hubs.md).

Setting both `upstream` and `[[listeners]]` is a mistake, and so is `[[routes]]` beside `[[listeners]]`. So is the same
bind address twice, `admin.bind` and `health.bind` included; port 0 lets the
kernel choose a free port, and may be given any number of times. All listeners together may have 246 addresses in
their `bind`.

## What is valid, and warned of

`relay check` prints a warning, and `relay run` and a reload log one, for settings that are valid but rarely intended. A
warning changes neither what relay does nor the exit status.

- The admin port is open to the network: anyone who reaches it can drain and reload this relay. Or the admin port and
  the health port are both off, so that nothing can check relay's health.
- `timeouts.client_hello = 0` where a listener reads a TLS hello (`sni`, routes) or a PROXY header: a client that sends
  none holds its connection for ever.
- `timeouts.idle` below 1767 s in front of port 8883: an MQTT client may be silent for that long. `timeouts.idle` and
  `tcp.keepalive_idle` both 0: a peer that vanishes holds its connection for ever.
- A network of `access.allow` lies wholly in `access.deny`, which wins.
- A source address that is never useful: given twice, unspecified, multicast, of a family that no upstream has, or
  loopback in front of an upstream elsewhere.
- Two IoT Hubs in one `upstream`: connections go to either, and many devices reach a hub that does not know them.
- `backup` of a route while `health_check.interval` is 0: nothing finds out that an upstream is down.
- `send_proxy_protocol` towards an IoT Hub, which refuses it.
- `limits.max_connections` beyond what the descriptor limit carries.
- `supervision.hang_timeout` too close to the service manager's watchdog.
- A deprecated name: one that a setting had before (`relay config` warns of it as well, and prints the new name).
"""

_DEPRECATED = """
## Deprecated names

These are old names of settings. Each works until the version that ends it, and is a mistake from then on.

"""

_COLUMNS = ("setting", "type", "default", "meaning", "environment")


def document(model: type[BaseModel]) -> str:
    """The whole reference, as Markdown."""
    settings = fields_of(model)
    lines = ["", "## Top level", "", *_rows([s for s in settings if s.kind is not Kind.SECTION])]
    for setting in settings:
        lines += _tables(setting, "")
    return _INTRODUCTION + "".join(f"{line}\n" for line in lines) + _deprecated()


def _deprecated() -> str:
    """The section about old names, empty while there are none."""
    if not RENAMED:
        return ""
    rows = [("deprecated name", "write", "ends with version", "environment"), ("---",) * 4]
    for old, renamed in RENAMED.items():
        in_tables = old.startswith("listeners.")
        where = f"in `{variable('listeners')}`" if in_tables else f"`{variable(old)}`"
        rows.append((f"`{old}`", f"`{renamed.new}`", renamed.until, where))
    return _DEPRECATED + "".join(f"{_row(row)}\n" for row in rows)


def _tables(setting: Setting, variable: str) -> Iterator[str]:
    """The section of a table, and of the lists of tables in it. `variable` has the list that it is in, if any."""
    if setting.table is None:
        return
    if setting.kind is Kind.TABLES:
        variable = variable or setting.variable
    heading = f"[[{setting.name}]]" if setting.kind is Kind.TABLES else f"[{setting.name}]"
    about = " ".join((setting.table.__doc__ or "").split())
    below = fields_of(setting.table, setting.path)
    yield from (
        "",
        f"## `{heading}`",
        "",
        about,
        "",
        *_rows([s for s in below if s.kind is not Kind.SECTION], variable),
    )
    for inner in below:
        yield from _tables(inner, variable)


def _rows(settings: list[Setting] | tuple[Setting, ...], variable: str = "") -> Iterator[str]:
    """A row for each setting. `variable`: the environment's variable for the list of tables that they are in."""
    yield _row(_COLUMNS)
    yield _row(["---"] * len(_COLUMNS))
    for setting in settings:
        yield _row(
            [
                f"`{setting.path[-1]}`",
                _type(setting),
                _default(setting),
                setting.meaning,
                f"in `{variable}`" if variable else f"`{setting.variable}`",
            ]
        )


def _default(setting: Setting) -> str:
    if setting.inherits:
        return f"`{'.'.join(setting.path[-2:])}`"
    return "required" if setting.default is None else f"`{setting.default}`"


def _type(setting: Setting) -> str:
    if setting.kind is Kind.WORD:
        return " or ".join(f'`"{choice}"`' for choice in setting.choices)
    return f"{setting.kind.value}, {setting.bounds}" if setting.bounds else setting.kind.value


def _row(cells: tuple[str, ...] | list[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"


if __name__ == "__main__":
    sys.stdout.write(document(Settings))
