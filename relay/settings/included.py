"""Files that the settings file includes: their lists of tables are appended to those of the file.

An included file has [[customers]], [[routes]] and [[listeners]] only, so that whoever may write one of them, such as a
program that manages customers, changes nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from relay.settings.file_reader import Included, Unreadable
from relay.settings.sources import EnvironSource, FileSource, parse_toml, printable, show, text_of

APPENDED = ("customers", "routes", "listeners")

ReadIncluded = Callable[[Path, Sequence[str]], list[Included]]
Location = tuple[str | int, ...]


@dataclass(slots=True)
class Places:
    """Where the tables of each appended list were written, for error messages: the file and the line."""

    # By list: each file that has a part of it, by name and text, and how many tables that part has.
    parts: dict[str, list[tuple[str, str, int]]] = field(default_factory=dict)

    def add(self, name: str, text: str, tables: Mapping[str, Any]) -> None:
        """Note the lists of one file."""
        for key in APPENDED:
            if isinstance(found := tables.get(key), list):
                self.parts.setdefault(key, []).append((name, text, len(found)))

    def in_several_files(self) -> Places:
        """The places of those lists that several files have a part of: for others the settings' names are enough."""
        return Places({key: parts for key, parts in self.parts.items() if len(parts) > 1})

    def of(self, path: Location, value: object = None) -> str:
        """`FILE line N` of the table that the path leads into, or of `value` in it; empty if that is not known.

        The line is left out where the tables are not written as [[key]].
        """
        if len(path) < 2 or not isinstance(path[1], int):
            return ""
        number = path[1]
        for name, text, length in self.parts.get(str(path[0]), ()):
            if number < length:
                line = _line(text, str(path[0]), number, length, value)
                return f"{printable(name)} line {line}" if line else printable(name)
            number -= length
        return ""


def _line(text: str, key: str, number: int, length: int, value: object) -> int:
    """The line of the table with that number, or of `value` within it; 0 if the tables are written in another way."""
    header = re.compile(rf"""^[ \t]*\[\[[ \t]*["']?{key}["']?[ \t]*\]\]""", re.MULTILINE)
    starts = [match.start() for match in header.finditer(text)]
    if len(starts) != length:
        return 0
    start, end = starts[number], [*starts, len(text)][number + 1]
    if type(value) is str or type(value) is int:
        written = rf"""["']{re.escape(value)}["']""" if isinstance(value, str) else rf"(?<![\w.]){value}(?![\w.])"
        if found := re.compile(written).search(text, start, end):
            start = found.start()
    return text.count("\n", 0, start) + 1


def include(file: FileSource, environ: EnvironSource, read: ReadIncluded) -> Places:
    """Append the lists of the included files to the values of `file`; mistakes are added to its problems."""
    places = Places()
    if file.path is not None:
        places.add(str(file.path), file.text, file.values)
    patterns = environ.values.get("include", file.values.get("include", []))
    if not isinstance(patterns, list) or not all(isinstance(pattern, str) and pattern for pattern in patterns):
        return places  # the models say what is wrong
    if not patterns:
        return places
    if file.path is None:
        file.problems.append("include: without --config there is no file that the patterns are relative to")
        return places
    try:
        found = read(file.path.parent, patterns)
    except Unreadable as error:
        found = [Included(", ".join(patterns), b"", str(error), error.absent)]
    before = len(file.problems)
    for item in found:
        _append(file, places, item)
    if len(file.problems) > before:
        file.readable = False
        file.absent = not before and all(item.absent for item in found if item.mistake)
    return places


def _append(file: FileSource, places: Places, item: Included) -> None:
    """Append the lists of one included file, or report what is wrong with it."""
    where = f"include: {printable(item.name)}"
    if item.mistake:
        file.problems.append(f"{where}: {item.mistake}")
        return
    try:
        text = text_of(item.content)
        tables = parse_toml(text)
    except ValueError as error:
        file.problems.append(f"{where}: {error}")
        return
    file.renew(tables, item.name, text)
    for key, found in tables.items():
        if key not in APPENDED:
            wrong = printable(key)
            file.problems.append(f"{where}: {wrong}: only [[{']], [['.join(APPENDED)}]] may be in an included file")
        elif not isinstance(found, list):
            file.problems.append(f"{where}: {key}: {show(found)} is not a list of tables; write [[{key}]] before each")
        elif isinstance(whole := file.values.setdefault(key, []), list):  # else the models say what is wrong
            whole += found
            places.add(item.name, text, {key: found})
