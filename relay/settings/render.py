"""Settings as TOML with a comment for each: the output of `relay config`, which can be loaded again.

Works on any model that `settings.schema` can walk. It only formats, and validates nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import BaseModel

from relay.settings.schema import Kind, Setting, fields_of, to_toml

_HEADER = """\
# Settings of relay, defaults included. Durations are in seconds, sizes in bytes; 0 or empty is off.
# Every setting can also be given in the environment, which wins: RELAY_LIMITS__MAX_CONNECTIONS=20000
"""


def render(settings: BaseModel) -> str:
    """TOML that loads to equal settings; each setting has a comment with its meaning, unit and bounds."""
    return _HEADER + "".join(f"{line}\n" for line in _table(settings, ()))


def _table(model: BaseModel, above: tuple[str, ...]) -> Iterator[str]:
    """The lines of one table: its values first, then the tables below it, since a key belongs to the header above."""
    settings = fields_of(type(model), above)
    for setting in settings:
        if setting.kind not in (Kind.SECTION, Kind.TABLES) and getattr(model, setting.path[-1]) is not None:
            yield ""
            yield comment(setting)
            yield f"{setting.path[-1]} = {to_toml(getattr(model, setting.path[-1]))}"
    for setting in settings:
        value = getattr(model, setting.path[-1])
        if setting.kind is Kind.SECTION:
            if any(lines := list(_below(value, setting))):  # none of a listener that inherits all of it
                yield from ("", f"[{setting.name}]", *lines)
        elif setting.kind is Kind.TABLES:
            for item in value:
                yield ""
                yield f"[[{setting.name}]]"
                yield from _below(item, setting)


def _below(model: BaseModel, setting: Setting) -> Iterator[str]:
    lines = _table(model, setting.path)
    next(lines, None)  # no empty line between a header and its first key
    yield from lines


def comment(setting: Setting) -> str:
    """The comment of a setting, one line: its meaning, then its bounds or allowed values."""
    notes = setting.bounds or " | ".join(setting.choices)
    return f"# {setting.meaning}{f' ({notes})' if notes else ''}"
