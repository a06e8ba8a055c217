"""Routes by server name: which route a TLS client's connection takes, and which routes can never be taken.

A name of a route is exact, or `*.suffix` for every name that ends in `.suffix`, at any depth; `*.example` does not
match `example` itself. Of all names that match, the one whose route was written first wins. A look-up hashes the
client's name once, and once more for each of its labels, so a hundred routes cost what one costs.

Names are lower-case and have no trailing dot. Routes are known by their position, from 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

STAR = "*."


class Names:
    """Finds the first of several lists of names that has a match for a client's name."""

    def __init__(self, lists: Iterable[Sequence[str]]) -> None:
        self._exact: dict[str, int] = {}
        self._suffixes: dict[str, int] = {}
        for position, names in enumerate(lists):
            self.add(names, position)

    def add(self, names: Iterable[str], position: int) -> None:
        """Add the names of the list at `position`; those of earlier calls come first."""
        for name in names:
            if name.startswith(STAR):
                self._suffixes.setdefault(name.removeprefix(STAR), position)
            else:
                self._exact.setdefault(name, position)

    def find(self, name: str) -> int | None:
        """The position of the first list with a match for `name`; None if there is none, or `name` is empty."""
        best = self._exact.get(name)
        suffixes = self._suffixes
        if suffixes:
            _, dot, rest = name.partition(".")
            while dot:
                found = suffixes.get(rest)
                if found is not None and (best is None or found < best):
                    best = found
                _, dot, rest = rest.partition(".")
        return best


OWN = -1  # the listener's own upstream


class Router:
    """Decides where the connections of one listener go.

    `routes` has the names of each route. `further` are names that are let through to the listener's own upstream, and
    `own` says whether it has one. Without `further`, everything that no route matches goes there: other names, no name,
    and what is no TLS (`others`).
    """

    def __init__(self, routes: Sequence[Sequence[str]], further: Sequence[str] = (), *, own: bool = True) -> None:
        self._routes = Names(routes)
        self._further = Names([further] if own else [])
        self.others = own and not further
        self.reads = bool(routes) or not self.others  # whether a connection's hello has to be read

    def decide(self, name: str) -> int | None:
        """The position of the route for a client that asks for `name` ("": for none), or OWN; None: it is refused."""
        position = self._routes.find(name)
        if position is not None:
            return position
        return OWN if self.others or self._further.find(name) is not None else None


class Shadow(NamedTuple):
    """A route that no connection can take, and the earlier routes that have all of its names; by their positions."""

    route: int
    earlier: tuple[int, ...]


def shadowed(lists: Sequence[Sequence[str]]) -> list[Shadow]:
    """The routes that can never be taken, in order. `lists` has the names of each route."""
    found: list[Shadow] = []
    earlier = Names([])
    for position, names in enumerate(lists):
        # A star counts as a label here: *.a.b is covered by *.a.b and by *.b, and never by an exact name.
        covers = [earlier.find(name) for name in names]
        if names and None not in covers:
            found.append(Shadow(position, tuple(sorted({cover for cover in covers if cover is not None}))))
        earlier.add(names, position)
    return found
