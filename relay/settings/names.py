"""The names of settings: their environment variables, and the names that a setting had before.

A setting that is renamed has an entry in RENAMED until the version in which its old name ends. Until then the old name
works in the file and in the environment, and `relay check`, the log and `relay config` warn of it. Imports the standard
library only, since the commands that ask a running relay import it without the models.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

PREFIX = "RELAY_"
NESTING = "__"
MOST_CANDIDATES = 20  # lines that are tried as the place of a name; each is a reading of the file up to there

Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Renamed:
    """What became of an old name: the dotted name `new`. `until` is the first version without the old name."""

    new: str
    until: str


# Old dotted name → new one. `listeners.x` is the key x of each [[listeners]], and stays in the same table.
RENAMED: dict[str, Renamed] = {}


@dataclass(frozen=True, slots=True)
class Use:
    """A value under an old name: the path as written, and that of the setting. `name` is the old name in RENAMED."""

    name: str
    old: Path
    new: Path
    both: bool  # the new name is there as well


def variable(name: str) -> str:
    """The environment variable of a dotted name: `RELAY_LIMITS__MAX_CONNECTIONS`."""
    return PREFIX + name.replace(".", NESTING).upper()


def variables(name: str) -> list[str]:
    """Every environment variable that sets the setting `name`: its own, and those of its old names."""
    return [variable(name), *(variable(old) for old, renamed in RENAMED.items() if renamed.new == name)]


def path_text(path: Path) -> str:
    """A path of bare keys as text, `listeners[0].bind`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def warning(where: str, new: str, until: str) -> str:
    """The line about an old name in use at `where`."""
    return f"{where}: deprecated name, unknown from version {until} on; write {new}"


def both_given(old: str, new: str) -> str:
    """The line about a setting that has a value under its old name and another under its new one."""
    return f"{old} and {new}: both given, and the first is the deprecated name of the second; keep {new}"


def renew(values: dict[str, Any]) -> list[Use]:
    """Move each value from an old name to the new one, which wins where both are there; the old names found."""
    found = []
    for name, renamed in RENAMED.items():
        old, new = name.split("."), renamed.new.split(".")
        shared = 0
        while shared < min(len(old), len(new)) - 1 and old[shared] == new[shared]:
            shared += 1
        for above, table in _tables(values, tuple(old[:shared]), ()):
            taken = _take(table, old[shared:])
            if taken:
                both = not _put(table, new[shared:], taken[0])
                found.append(Use(name, (*above, *old[shared:]), (*above, *new[shared:]), both))
    return found


def _tables(table: object, keys: tuple[str, ...], above: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The tables at `keys` below `table`, with their paths; each of them where there is a list of tables."""
    if isinstance(table, list):
        for position, item in enumerate(table):
            yield from _tables(item, keys, (*above, position))
    elif isinstance(table, dict):
        if not keys:
            yield above, table
        elif keys[0] in table:
            yield from _tables(table[keys[0]], keys[1:], (*above, keys[0]))


def _take(table: dict[str, Any], keys: list[str]) -> list[Any]:
    """Remove a value, and the tables above it that are empty then; a list of the value, empty if there is none."""
    if len(keys) == 1:
        return [table.pop(keys[0])] if keys[0] in table else []
    below = table.get(keys[0])
    if not isinstance(below, dict):
        return []
    taken = _take(below, keys[1:])
    if not below:
        del table[keys[0]]
    return taken


def _put(table: dict[str, Any], keys: list[str], value: object) -> bool:
    """Set a value where there is none; False if there is one."""
    *above, last = keys
    for key in above:
        below = table.setdefault(key, {})
        if not isinstance(below, dict):
            return True  # not a table, which is a mistake of its own
        table = below
    if last in table:
        return False
    table[last] = value
    return True


def line_of(path: Path, text: str) -> int:
    """The line, counted from 1, on which a TOML document sets `path`; 0 if it is not found.

    tomllib tells no places. The document is cut at each line that looks like the key, with 0 in place of the value: the
    first such document that is valid and has the path ends at that line.
    """
    key = re.compile(rf"""(?:^|[\s.{{,])["']?{re.escape(str(path[-1]))}["']?\s*=""")
    lines = text.replace("\r\n", "\n").split("\n")
    candidates = [(number, match) for number, line in enumerate(lines) if (match := key.search(line))]
    for number, match in candidates[:MOST_CANDIDATES]:
        before = "\n".join([*lines[:number], lines[number][: match.end()]])
        for ending in (" 0", " 0 }", " 0 } }", " 0 }]"):
            try:
                cut = tomllib.loads(before + ending)
            except ValueError:
                continue
            if _has(cut, path):
                return number + 1
    return 0


def _has(values: Any, path: Path) -> bool:
    """Whether `values` has something at `path`."""
    for part in path:
        try:
            values = values[part]
        except (KeyError, IndexError, TypeError):
            return False
    return True
