"""The sources of settings, one TOML file and the environment, each as a source for pydantic-settings.

pydantic-settings' own sources stop at the first mistake, ignore unknown variables and read the process's environment
implicitly. These read their arguments only, report every mistake in one line, and remember which variable set which
setting. They only decode values; the models check them.
"""

from __future__ import annotations

import codecs
import difflib
import json
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from relay.settings import names
from relay.settings.file_reader import MAX_FILE, Unreadable
from relay.settings.names import NESTING, PREFIX, RENAMED, Use, path_text
from relay.settings.schema import Kind, Setting, fields_of, leaves_of

MAX_SHOWN = 60  # characters of a value that a message quotes

_WHOLE = re.compile(r"[+-]?[0-9]{1,30}")
_NUMBER = re.compile(r"[+-]?[0-9]{1,30}(\.[0-9]{0,30})?([eE][+-]?[0-9]{1,4})?")
_MEANT_AS_JSON = re.compile(r"\[\s*[\"{]")  # not `[::1]:53`, which begins with a bracket too
_TOML_PLACE = re.compile(r"(.*) \((?:at line (\d+), column (\d+)|at end of document)\)", re.DOTALL)


S = TypeVar("S", bound=BaseSettings)


def build(model: type[S], *sources: PydanticBaseSettingsSource) -> S:
    """A `model` from the values of `sources` alone; the first source wins. Raises ValidationError."""
    return model(_build_sources=(sources, {}))


class Values(PydanticBaseSettingsSource):
    """Values that are there already."""

    def __init__(self, settings_cls: type[BaseSettings], values: Mapping[str, Any]) -> None:
        super().__init__(settings_cls)
        self._values = values

    def __call__(self) -> dict[str, Any]:
        return dict(self._values)

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        return self._values.get(field_name), field_name, False


class FileSource(PydanticBaseSettingsSource):
    """The settings of a TOML file; no settings without a file. `problems` are the mistakes in the file itself.

    `read` returns the content of the file, or raises Unreadable.
    """

    def __init__(self, settings_cls: type[BaseSettings], path: Path | None, read: Callable[[Path], bytes]) -> None:
        super().__init__(settings_cls)
        self.values: dict[str, Any] = {}
        self.problems: list[str] = []
        self.readable = True
        self.absent = False  # the file cannot be read at this moment; a retry may succeed
        self.silent = ""  # a message that the file sets nothing; empty if it sets something
        self.deprecated: list[str] = []  # a warning for each old name
        self.written: dict[tuple[str, ...], str] = {}  # the old name that the file has, by the path of the setting
        self.path = path
        self.text = ""
        if path is not None:
            self._read(path, read)
            if self.readable and not _sets_anything(self.values):
                self.silent = f"{printable(str(path))} sets nothing: it is empty, or all of it is commented out"

    def _read(self, path: Path, read: Callable[[Path], bytes]) -> None:
        try:
            self.text = text_of(read(path))
            self.values = parse_toml(self.text)
        except Unreadable as error:
            self.absent = error.absent
            self._unreadable(f"--config {printable(str(path))}: {error}")
        except ValueError as error:
            self._unreadable(f"{printable(str(path))}: {error}")
        self.renew(self.values, str(path), self.text)
        for section in fields_of(self.settings_cls):
            if section.kind is Kind.SECTION and not isinstance(self.values.get(section.name, {}), dict):
                # Reported here, since the environment's values of the same section would hide the mistake.
                wrong = show(self.values.pop(section.name))
                self.problems.append(f"{section.name}: {wrong} is not a table; write [{section.name}]")

    def renew(self, tables: dict[str, Any], name: str, text: str) -> None:
        """Give the settings in the document `text` of a file their new names, and note the old ones.

        `tables` are what the document says. What it has of a list is not appended to `values` yet.
        """
        uses = names.renew(tables)
        for use in uses:
            new = self._appended(tables, use.new)
            if use.both:
                self.problems.append(names.both_given(path_text(self._appended(tables, use.old)), path_text(new)))
            else:
                self.written[tuple(map(str, new))] = path_text(self._appended(tables, use.old))
        for first, more in _by_name(uses):
            line = names.line_of(first.old, text)
            where = f"{printable(name)}{f', line {line}' if line else ''}"
            shown = path_text(self._appended(tables, first.old))
            self.deprecated.append(_deprecated(f"{shown} ({where})", first, more))

    def _appended(self, tables: dict[str, Any], path: names.Path) -> names.Path:
        """A path within `tables` as it is in `values`, once the lists of an included file stand behind those there."""
        if tables is self.values or len(path) < 2 or not isinstance(path[1], int):
            return path
        before = self.values.get(str(path[0]))
        return (path[0], path[1] + (len(before) if isinstance(before, list) else 0), *path[2:])

    def _unreadable(self, problem: str) -> None:
        self.readable = False
        self.problems.append(problem)

    def __call__(self) -> dict[str, Any]:
        return self.values

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        return self.values.get(field_name), field_name, False


class EnvironSource(PydanticBaseSettingsSource):
    """The settings of the RELAY_… variables. `variables` maps the path of each setting given there to its variable."""

    def __init__(self, settings_cls: type[BaseSettings], environ: Mapping[str, str]) -> None:
        super().__init__(settings_cls)
        self.values: dict[str, Any] = {}
        self.problems: list[str] = []
        self.variables: dict[tuple[str, ...], str] = {}
        self.deprecated: list[str] = []  # a warning for each old name
        known = {setting.variable: setting for setting in leaves_of(settings_cls)}
        renamed_to = {names.variable(name): renamed for name, renamed in RENAMED.items()}
        old = {variable: to for variable, to in renamed_to.items() if names.variable(to.new) in known}
        for variable in sorted(name for name in environ if name.startswith(PREFIX)):
            setting = known.get(variable)
            if variable in old:
                renamed = old[variable]
                new = names.variable(renamed.new)
                if new in environ:
                    self.problems.append(names.both_given(variable, new))
                    continue
                self.deprecated.append(names.warning(variable, new, renamed.until))
                setting = known[new]
            if setting is None:
                hint = _nearest_variable(variable, list(known))
                self.problems.append(f"{printable(variable)}: unknown setting; {hint}")
                continue
            self.variables[setting.path] = variable
            try:
                value = _decode(setting, environ[variable].strip())
            except ValueError as error:
                self.problems.append(f"{variable} ({setting.name}): {error}; {setting.meaning}")
                continue
            table = self.values
            for section in setting.path[:-1]:
                table = table.setdefault(section, {})
            table[setting.path[-1]] = value
        uses = names.renew(self.values)  # those in the JSON of a list of tables
        shown = {use: f"{names.variable(str(use.old[0]))} ({path_text(use.old)})" for use in uses}
        self.problems += [names.both_given(shown[use], path_text(use.new)) for use in uses if use.both]
        self.deprecated += [_deprecated(shown[first], first, more) for first, more in _by_name(uses)]

    def __call__(self) -> dict[str, Any]:
        return self.values

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        return self.values.get(field_name), field_name, False


def _sets_anything(table: dict[str, Any]) -> bool:
    """Whether a table, or a table inside it, has a value; a table header alone is none."""
    return any(_sets_anything(value) if isinstance(value, dict) else True for value in table.values())


def _by_name(uses: list[Use]) -> Iterator[tuple[Use, int]]:
    """The first use of each old name, and how many more of them there are in a list of tables."""
    for name in dict.fromkeys(use.name for use in uses):
        first, *more = (use for use in uses if use.name == name)
        yield first, len(more)


def _deprecated(where: str, use: Use, more: int) -> str:
    renamed = RENAMED[use.name]
    return names.warning(f"{where}{f' and {more} more' if more else ''}", renamed.new, renamed.until)


def text_of(data: bytes) -> str:
    """The text of a settings file. Raises ValueError with one line that says what is wrong."""
    if len(data) > MAX_FILE:
        raise ValueError(f"more than {MAX_FILE} bytes, which is no settings file")
    data = data.removeprefix(codecs.BOM_UTF8)  # editors on Windows write it; TOML does not allow it
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        before = data[: error.start].split(b"\n")
        raise ValueError(f"line {len(before)}, column {len(before[-1]) + 1}: not UTF-8") from None


def parse_toml(text: str) -> dict[str, Any]:
    """The tables of a TOML file. Raises ValueError with one line that says what is wrong, with its place if known."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(_toml_mistake(str(error), text)) from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except ValueError:  # int() refuses that many digits (sys.int_info)
        raise ValueError("has a number with thousands of digits") from None


def _decode(setting: Setting, text: str) -> object:
    """The value of a variable. Text that does not fit the setting's kind is returned as it is; the models refuse it."""
    if setting.kind is Kind.WHOLE and _WHOLE.fullmatch(text):
        return int(text)
    if setting.kind is Kind.NUMBER and _NUMBER.fullmatch(text):
        return float(text)
    if setting.kind is Kind.TRUTH:
        return {"true": True, "false": False}.get(text.lower(), text)
    if setting.kind is Kind.TABLES or (setting.kind is Kind.TEXTS and _MEANT_AS_JSON.match(text)):
        return _json_list(text) if text else []
    if setting.kind is Kind.TEXTS:
        return [item.strip() for item in text.split(",")] if text not in ("", "[]") else []
    return text


def _json_list(text: str) -> list[object]:
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{show(text)} is not valid JSON: {printable(str(error))}") from None
    if not isinstance(value, list):
        raise ValueError(f"{show(text)} is not a JSON list")
    return value


def _nearest_variable(variable: str, known: list[str]) -> str:
    """A hint for an unknown variable: the settings of the table that it names, or the most similar variable."""
    below = [name for name in known if name.startswith(variable + NESTING)]
    if below:
        return f"it is a table, whose settings are set one by one: {', '.join(below)}"
    # Compared without the prefix, which would make all names similar.
    names = [name.removeprefix(PREFIX) for name in known]
    near = difflib.get_close_matches(variable.removeprefix(PREFIX).upper(), names, n=1, cutoff=0.5)
    return f"did you mean {PREFIX}{near[0]}?" if near else "`relay config` shows every setting"


def _toml_mistake(message: str, text: str) -> str:
    """`line N, column M: what is wrong`, from tomllib's `what is wrong (at line N, column M)`."""
    match = _TOML_PLACE.fullmatch(message)
    if match is None:
        return printable(message)
    lines = text.replace("\r\n", "\n").split("\n")
    line, column = match[2] or len(lines), match[3] or len(lines[-1]) + 1
    return f"line {line}, column {column}: {printable(match[1])}"


def show(value: object) -> str:
    """A value for a message: one printable line, strings in quotes and cut to MAX_SHOWN characters."""
    if isinstance(value, str):
        cut = printable(value[:MAX_SHOWN].replace("\\", "\\\\").replace('"', '\\"'))
        return f'"{cut}…"' if len(value) > MAX_SHOWN else f'"{cut}"'
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) and value.bit_length() > 128:
        return "a number of dozens of digits"  # str() refuses to write out thousands of digits
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "a list"
    return printable(str(value))


def printable(text: str) -> str:
    """`text` with every unprintable character escaped, so that it cannot control a terminal or forge a log line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
