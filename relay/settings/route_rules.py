"""The rules for routes, and for listeners that have some: a line for each mistake.

As in `problems`, all but the last are checked on the values as they were given, so that a wrong number elsewhere does
not hide a mistake until the next try. What is no valid value at all is left to the models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from relay.address import parse_server_name
from relay.core.counters import ROUTE_SLOTS, UPSTREAM_SLOTS
from relay.core.routes import shadowed
from relay.settings.listeners import Listener
from relay.settings.problems import Location
from relay.settings.sources import show

Label = Callable[..., str]  # the name of a setting for a message, from the parts of its path


class _Written(NamedTuple):
    """One route as it was given, and the listener that it belongs to."""

    path: Location
    table: Mapping[str, Any]
    label: Label

    @property
    def where(self) -> str:
        """The setting, for messages."""
        return self.label(*self.path)

    @property
    def shown(self) -> str:
        """The setting and the route's name."""
        return f"{self.where} ({show(self.table.get('name', ''))})"


def route_problems(given: Callable[..., Any], label: Label, ports: Mapping[str, int]) -> list[str]:
    """A line for each broken rule. `given` returns a setting's value; `ports` are the short form's listeners."""
    listeners, routes, upstream = given("listeners"), given("routes"), given("upstream")
    found: list[str] = []
    by_listener: list[list[_Written]] = []
    if isinstance(listeners, list):
        for position, table in enumerate(listeners):
            if isinstance(table, dict):
                written = list(_written(table.get("routes"), ("listeners", position, "routes"), label))
                by_listener.append(written)
                found += _own_upstream(table, ("listeners", position), label)
                if table.get("trusted_proxies") and table.get("proxy_protocol", "off") == "off":
                    found.append(
                        f"{label('listeners', position, 'trusted_proxies')}: no PROXY header is read here; set "
                        'proxy_protocol to "accept" or "require", or take it out'
                    )
    if routes:
        where = label("routes")
        if listeners:
            found.append(
                f"{where} and {label('listeners')}: both given; [[routes]] belongs to the listeners "
                f"{', '.join(ports)} of the short form: write [[listeners.routes]] below each listener instead"
            )
            return found
        short = list(_written(routes, ("routes",), label))
        found += _listener_names(short, routes, label, ports)
        for name in ports:
            chosen = [route for route in short if name in (_texts(route.table.get("listeners")) or ports)]
            by_listener.append(chosen)
            if not chosen and not upstream:
                found.append(
                    f"{where}: no route is for the listener {name}, which without upstream has nowhere to connect to: "
                    f'add "{name}" to the listeners of a route, or write [[listeners]]'
                )
    for written in by_listener:
        found += _in_one_listener(written)
    found += _rates([route for written in by_listener for route in written])
    return list(dict.fromkeys(found))  # a route of the short form is in up to three listeners


def room_problems(listeners: Sequence[Listener]) -> Iterator[str]:
    """A line for each kind of thing that valid settings have more of than there is room for."""
    routes = sum(len(item.routes) for item in listeners)
    upstreams = len({text for item in listeners for text in item.destinations})
    if routes > ROUTE_SLOTS:
        yield f"routes: {routes}, over all listeners; at most {ROUTE_SLOTS}"
    if upstreams > UPSTREAM_SLOTS:
        yield f"upstream: {upstreams} different ones, over all listeners and routes; at most {UPSTREAM_SLOTS}"


def _written(routes: object, path: Location, label: Label) -> Iterator[_Written]:
    for number, table in enumerate(routes if isinstance(routes, list) else ()):
        if isinstance(table, dict):
            yield _Written((*path, number), table, label)


def _texts(value: object) -> list[str]:
    return [text for text in value if isinstance(text, str)] if isinstance(value, list) else []


def _own_upstream(table: Mapping[str, Any], path: Location, label: Label) -> Iterator[str]:
    """A listener without an upstream of its own: it needs routes, and can let no further names through."""
    if table.get("upstream"):
        return
    where = label(*path, "upstream")
    if not table.get("routes"):
        yield (
            f"{where}: {'is empty' if 'upstream' in table else 'missing'}; where to connect, each host:port; without "
            "it, write [[listeners.routes]]"
        )
    elif table.get("sni"):
        yield (
            f"{label(*path, 'sni')}: names for the listener's own upstream, which is not set: set "
            "upstream, or give the names to a route"
        )


def _listener_names(
    short: Sequence[_Written], routes: Sequence[Any], label: Label, ports: Mapping[str, int]
) -> Iterator[str]:
    """Names in a route's `listeners` that no listener of the short form has."""
    for number, table in enumerate(routes):
        names = table.get("listeners") if isinstance(table, dict) else None
        for position, name in enumerate(names if isinstance(names, list) else ()):
            if isinstance(name, str) and name not in ports:
                where = label("routes", number, "listeners", position)
                yield f"{where}: {show(name)} is not one of {', '.join(map(show, ports))}"


def _in_one_listener(routes: Sequence[_Written]) -> Iterator[str]:
    """Routes of one listener: names given twice, routes that are never taken, upstreams that back up themselves."""
    names: dict[str, _Written] = {}
    for route in routes:
        name = route.table.get("name")
        if isinstance(name, str) and (other := names.setdefault(name, route)) is not route:
            yield (
                f"{route.label(*route.path, 'name')}: {show(name)} is also the name of {other.where}; names are unique "
                "among the routes of a listener"
            )
        both = set(_texts(route.table.get("upstream"))).intersection(_texts(route.table.get("backup")))
        for text in sorted(both):
            yield f"{route.label(*route.path, 'backup')}: {show(text)} is in upstream too; a backup is another place"
    for dead, earlier in shadowed([_names(route) for route in routes]):
        others = " and ".join(routes[position].shown for position in earlier)
        yield (
            f"{routes[dead].shown}: is never taken, since {others}, written before it, "
            f"{'has' if len(earlier) == 1 else 'have'} all of its names: write it further up, or take it out"
        )


def _names(route: _Written) -> list[str]:
    """The route's server names as settings keep them; none if one is invalid, so that no rule speaks of the route."""
    try:
        return [parse_server_name(text) for text in _texts(route.table.get("sni"))]
    except ValueError:
        return []


def _rates(routes: Sequence[_Written]) -> Iterator[str]:
    """Routes of one name that have different rates: the rate is one for all of them."""
    first: dict[str, _Written] = {}
    for route in routes:
        name, rate = route.table.get("name"), route.table.get("rate", 0.0)
        if not isinstance(name, str) or not isinstance(rate, int | float):
            continue
        other = first.setdefault(name, route)
        before = other.table.get("rate", 0.0)
        if rate != before:
            yield (
                f"{route.label(*route.path, 'rate')}: {show(rate)}, but {other.where} has the same name, {show(name)}, "
                f"and {show(before)}: routes of one name share one rate over all listeners"
            )
