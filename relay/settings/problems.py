"""The error messages for settings, one line per mistake: pydantic's findings, and rules over more than one setting.

The rules (nothing to listen on, upstream and listeners both given, the same address twice) are checked on the values as
they were given, not on the validated models, so that a wrong number elsewhere does not hide them until the next try.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from relay.address import format_hostport, parse_host, parse_hostport
from relay.core.destinations import why_never
from relay.ipc.channel import MAX_DESCRIPTORS
from relay.ipc.messages import START_DESCRIPTORS
from relay.own_addresses import OWN, Endpoint, is_certainly_own
from relay.settings.included import Places
from relay.settings.schema import Kind, Setting, find, leaves_of
from relay.settings.sources import EnvironSource, FileSource, printable, show

Location = tuple[str | int, ...]

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_NOT_A = {
    "int_type": "is not a whole number",
    "float_type": "is not a number",
    "finite_number": "is not a finite number",
    "bool_type": "is neither true nor false",
    "string_unicode": "is not UTF-8",
    "string_type": "is not a string; write it in quotes",
}
_OUT_OF_BOUNDS = frozenset({"greater_than", "greater_than_equal", "less_than", "less_than_equal"})
MOST_ADDRESSES = MAX_DESCRIPTORS - START_DESCRIPTORS  # one message brings a worker a socket for each bind address
_WILDCARDS = frozenset({"0.0.0.0", "::"})


def path_text(path: Location) -> str:
    """A path as text, `listeners[0].bind[1]`: positions count from 0, keys that TOML would quote are quoted."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += ("." if text else "") + (part if _BARE.fullmatch(part) else show(part))
    return text


def as_written(file: FileSource, environ: EnvironSource) -> dict[tuple[str, ...], str]:
    """What somebody has written to give a setting its value, by path, where it is not the setting's name: a variable
    or an old name. What the environment has replaced in the file is left out."""
    kept = {
        path: name
        for path, name in file.written.items()
        if not any(path[:length] in environ.variables for length in range(1, len(path) + 1))
    }
    return {**kept, **environ.variables}


def label(
    path: Location, variables: Mapping[tuple[str, ...], str], places: Places | None = None, value: object = None
) -> str:
    """The name of a setting for a message: `RELAY_WORKERS (workers)` if a variable set it, else its path.

    `variables` may have the old name of a setting in place of a variable (`as_written`). With `places`, the file and
    line of a table are added, or those of `value` in the table.
    """
    for length in range(len(path), 0, -1):
        variable = variables.get(tuple(str(part) for part in path[:length]))
        if variable is not None:
            return f"{variable} ({path_text(path)})"
    place = places.of(path, value) if places is not None else ""
    return f"{path_text(path)} ({place})" if place else path_text(path)


def field_problems(
    error: ValidationError, model: type[BaseModel], variables: Mapping[tuple[str, ...], str], places: Places
) -> Iterator[str]:
    """A line for each of pydantic's findings: the setting, its value, the mistake, the allowed values."""
    for found in error.errors(include_url=False):
        path: Location = found["loc"]
        where = label(path, variables, places, found["input"])
        if found["type"] == "too_short" and found["input"]:
            continue  # pydantic counts valid items only; each invalid one has a line of its own
        if found["type"] == "extra_forbidden":
            yield f"{where}: unknown setting{_nearest(model, path)}"
            continue
        setting = find(model, path)
        if setting is None:
            yield f"{where}: {printable(found['msg'])}"
            continue
        if isinstance(path[-1], int):
            yield f"{where}: {_fault(found, setting)}"  # an item: the list's meaning would add little
            continue
        if setting.kind is Kind.SECTION:
            name = ".".join(part for part in path if isinstance(part, str))
            yield f"{where}: {show(found['input'])} is not a table; write [{name}] before its keys"
            continue
        default = "" if setting.default is None else f" (default {setting.default})"
        yield f"{where}: {_fault(found, setting)}; {setting.meaning}{default}"


def _fault(found: ErrorDetails, setting: Setting) -> str:
    kind_of_error, value = found["type"], show(found["input"])
    if kind_of_error == "missing":
        return "missing"
    if kind_of_error == "too_short":
        return "is empty"
    if kind_of_error == "literal_error":
        return f"{value} is not one of {', '.join(show(choice) for choice in setting.choices)}"
    beyond_float = kind_of_error == "float_type" and type(found["input"]) is int
    if kind_of_error in _OUT_OF_BOUNDS or beyond_float:
        return f"{value} is out of range ({setting.bounds})"
    if kind_of_error in _NOT_A:
        return f"{value} {_NOT_A[kind_of_error]}"
    if kind_of_error == "value_error":
        return f"{value} {found['ctx']['error']}"
    if setting.kind is Kind.TABLES:
        if isinstance(found["loc"][-1], int):
            return f"{value} is not a table"
        name = ".".join(part for part in found["loc"] if isinstance(part, str))
        return f"{value} is not a list of tables; write [[{name}]] before each"
    if setting.kind in (Kind.TEXTS, Kind.WHOLES):
        return f"{value} is not a {setting.kind.value}"
    return f"{value}: {printable(found['msg'])}"


def _nearest(model: type[BaseModel], path: Location) -> str:
    """`; did you mean …?` with the most similar name in the same table, else the same name in another table."""
    name, above = str(path[-1]), path[:-1]
    parent = find(model, above)
    table = model if not above else None if parent is None else parent.table
    if table is not None:
        near = difflib.get_close_matches(name.lower(), table.model_fields, n=1)
        if near:
            return f"; did you mean {near[0]}?"
    elsewhere = [setting.name for setting in leaves_of(model) if setting.path[-1] == name.lower()]
    return f"; did you mean {elsewhere[0]}?" if elsewhere else ""


@dataclass(frozen=True, slots=True)
class _Bind:
    where: str  # the setting, for messages
    host: str
    port: int
    shared: bool  # bound with SO_REUSEPORT, as listeners are


class Whole:
    """The effective values before validation, for the rules that concern more than one setting."""

    def __init__(self, model: type[BaseModel], file: FileSource, environ: EnvironSource, places: Places) -> None:
        self._model = model
        self._file = file
        self._environ = environ
        self._written = as_written(file, environ)
        self._places = places

    def label(self, *path: str | int) -> str:
        """The name of a setting for a message (`label`)."""
        return label(path, self._written, self._places)

    def problems(self, shorthand_ports: Mapping[str, int], *, require_listeners: bool) -> Iterator[str]:
        """A line for each broken rule. `shorthand_ports`: the listeners that `upstream` stands for, port by name."""
        upstream, listeners = self.given("upstream"), self.given("listeners")
        routes = self.given("routes")
        if upstream and listeners:
            yield (
                f"{self.label('upstream')} and {self.label('listeners')}: both given; upstream is "
                f"short for the listeners {', '.join(shorthand_ports)} and nothing else: write one or the other"
            )
        elif not (upstream or listeners or routes) and require_listeners and self._nothing_unread():
            yield (
                'upstream: not set, so there is nothing to relay to; set upstream = ["myhub.azure-devices.net"] in the '
                "file, or RELAY_UPSTREAM=myhub.azure-devices.net, or write [[listeners]]"
                + (f" ({self._file.silent})" if self._file.silent else "")
            )
        tables = [table for table in listeners if isinstance(table, dict)] if isinstance(listeners, list) else []
        names: dict[str, int] = {}
        for position, table in enumerate(tables):
            name = table.get("name")
            if isinstance(name, str) and names.setdefault(name, position) != position:
                where = self.label("listeners", position, "name")
                yield f"{where}: {show(name)} is also the name of listeners[{names[name]}]; names are unique"
        least, most = self.given("dns", "min_ttl"), self.given("dns", "max_ttl")
        if isinstance(least, int | float) and isinstance(most, int | float) and least > most:
            yield (f"{self.label('dns', 'min_ttl')}: {show(least)} is more than dns.max_ttl, which is {show(most)}")
        addresses = sum(len(table["bind"]) for table in tables if isinstance(table.get("bind"), list))
        if addresses > MOST_ADDRESSES:
            where = self.label("listeners")
            yield f"{where}: {addresses} addresses to listen on, over all `bind`; at most {MOST_ADDRESSES}"
        shorthand = shorthand_ports if (upstream or routes) and not listeners else {}
        binds = list(self._binds(tables, shorthand))
        yield from _collisions(iter(binds))
        yield from _loops(binds, self._upstreams(tables, shorthand))

    def listeners(self, shorthand_ports: Mapping[str, int]) -> tuple[list[str], bool, str]:
        """The names of all listeners, whether one of them reads PROXY headers, and which reads every sender's."""
        tables = self.given("listeners")
        if not tables or not isinstance(tables, list):
            return list(shorthand_ports) if self.given("upstream") or self.given("routes") else [], False, ""
        found = [table for table in tables if isinstance(table, dict)]
        reading = [n for n, table in enumerate(found) if table.get("proxy_protocol", "off") != "off"]
        open_to_all = next((n for n in reading if not found[n].get("trusted_proxies")), None)
        where = "" if open_to_all is None else self.label("listeners", open_to_all, "trusted_proxies")
        return [name for table in found if isinstance(name := table.get("name"), str)], bool(reading), where

    def given(self, *path: str) -> Any:
        """The value at `path`: from the environment, else from the file, else the default."""
        for values in (self._environ.values, self._file.values):
            found: Any = values
            for part in path:
                found = found.get(part) if isinstance(found, dict) else None
            if found is not None:
                return found
        setting = find(self._model, path)
        return None if setting is None else setting.field.default

    def _nothing_unread(self) -> bool:
        """Whether the file and the variables could be decoded; else a missing setting may be in what could not."""
        failed = [path for path in (("upstream",), ("routes",), ("listeners",)) if path in self._environ.variables]
        return self._file.readable and all(path[0] in self._environ.values for path in failed)

    def _upstreams(self, tables: list[dict[str, Any]], shorthand: Mapping[str, int]) -> Iterator[tuple[str, str, int]]:
        """The setting, host and port of each upstream that is a literal address, those of routes included."""
        if shorthand:
            top = {"upstream": self.given("upstream"), "routes": self.given("routes")}
            for path, text in _destinations(top, ()):
                if host := _literal(text):
                    yield from ((self.label(*path), host, port) for port in shorthand.values())
        for position, table in enumerate(tables):
            for path, text in _destinations(table, ("listeners", position)):
                for bind in _parsed(self.label(*path), text, False):
                    yield bind.where, bind.host, bind.port

    def _binds(self, tables: list[dict[str, Any]], shorthand: Mapping[str, int]) -> Iterator[_Bind]:
        for name, port in shorthand.items():
            for host in ("0.0.0.0", "::"):
                yield _Bind(f"the {name} listener of {self.label('upstream')}", host, port, True)
        for position, table in enumerate(tables):
            binds = table.get("bind")
            for number, text in enumerate(binds if isinstance(binds, list) else ()):
                yield from _parsed(self.label("listeners", position, "bind", number), text, True)
        for section in ("admin", "health"):
            yield from _parsed(self.label(section, "bind"), self.given(section, "bind"), False)


def _loops(binds: list[_Bind], upstreams: Iterator[tuple[str, str, int]]) -> Iterator[str]:
    """A line for each upstream that is a bind address of this relay itself, on any machine."""
    for where, host, port in upstreams:
        if why_never(host):
            continue  # field_problems reports it
        for bind in binds:
            if is_certainly_own(host, port, [Endpoint(bind.host, bind.port, not bind.shared)]):
                shown = show(format_hostport(host, port))
                yield f"{where}: {shown} is {OWN}, {bind.where}: each connection would lead to another one"
                break


def _parsed(where: str, text: object, shared: bool) -> Iterator[_Bind]:
    if isinstance(text, str) and text:
        try:
            yield _Bind(where, *parse_hostport(text, allow_name=False), shared)
        except ValueError:
            pass  # field_problems reports it


def _destinations(table: Mapping[str, Any], path: Location) -> Iterator[tuple[Location, str]]:
    """The path and text of each upstream of a table, and of the upstreams and backups of its routes."""
    for key in ("upstream", "backup"):
        texts = table.get(key)
        for number, text in enumerate(texts if isinstance(texts, list) else ()):
            if isinstance(text, str):
                yield (*path, key, number), text
    routes = table.get("routes")
    for number, route in enumerate(routes if isinstance(routes, list) else ()):
        if isinstance(route, dict):
            yield from _destinations({**route, "routes": None}, (*path, "routes", number))


def _literal(text: str) -> str:
    """The host if it is a literal address; empty for a name or invalid text."""
    try:
        return parse_host(text, allow_name=False)
    except ValueError:
        return ""


def _collisions(binds: Iterator[_Bind]) -> Iterator[str]:
    """A line for each bind address that conflicts with an earlier one."""
    earlier: list[_Bind] = []
    for bind in binds:
        for other in earlier:
            if bind.port and bind.port == other.port and _overlap(bind, other):
                shown = show(format_hostport(bind.host, bind.port))
                yield f"{bind.where}: {shown} is already bound by {other.where}; every bind address is bound once"
                break
        earlier.append(bind)


def _overlap(one: _Bind, other: _Bind) -> bool:
    """Whether two binds of one port conflict: the kernel refuses the second, or shares connections between them.

    Between listeners, which all set SO_REUSEPORT, an address beside the wildcard is fine: the kernel prefers the more
    specific socket. The admin and health ports do not set it, and bind(2) fails with EADDRINUSE. Nor do they set
    IPV6_V6ONLY, so [::] there takes IPv4 as well.
    """
    if one.host == other.host:
        return True
    if one.shared and other.shared:
        return False
    if any(bind.host == "::" and not bind.shared for bind in (one, other)):
        return True
    same_family = ip_address(one.host).version == ip_address(other.host).version
    return same_family and bool(_WILDCARDS & {one.host, other.host})
