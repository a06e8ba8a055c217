"""The route of a server name, beside a walk over all names of all routes."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from relay.core.routes import Names, Shadow, shadowed

LABELS = st.sampled_from(["a", "b", "hub", "example", "net"])  # few, so that names match by chance
HOSTS = st.lists(LABELS, min_size=1, max_size=4).map(".".join)
PATTERNS = st.tuples(st.booleans(), HOSTS).map(lambda parts: f"*.{parts[1]}" if parts[0] else parts[1])
ROUTES = st.lists(st.lists(PATTERNS, min_size=1, max_size=3), max_size=6)


def matches(pattern: str, name: str) -> bool:
    return name.endswith(pattern[1:]) if pattern.startswith("*.") else name == pattern


def walk(routes: Sequence[Sequence[str]], name: str) -> int | None:
    for position, patterns in enumerate(routes):
        if any(matches(pattern, name) for pattern in patterns):
            return position
    return None


@given(ROUTES, HOSTS)
@example([["*.hub.example"], ["a.hub.example"]], "a.hub.example")
@example([["a.hub.example"], ["*.example"], ["*.hub.example"]], "b.hub.example")
@example([["*.example"]], "example")
def test_a_name_takes_the_route_that_a_walk_finds(routes: list[list[str]], name: str) -> None:
    assert Names(routes).find(name) == walk(routes, name)


@pytest.mark.parametrize("name", ["", ".", "..", "example", ".example", "a..example", "." * 255])
def test_names_that_are_none(name: str) -> None:
    """A client may send any ASCII text."""
    routes = [["*.hub.example", "hub.example"]]
    assert Names(routes).find(name) is None
    assert Names([]).find(name) is None


def test_a_suffix_matches_at_any_depth_but_not_itself() -> None:
    names = Names([["*.example"]])
    assert [names.find(name) for name in ("a.example", "a.b.example", "example", "aexample")] == [0, 0, None, None]


@given(ROUTES, st.lists(HOSTS, max_size=30))
def test_no_name_takes_a_shadowed_route_and_every_other_route_is_taken_by_one(
    routes: list[list[str]], names: list[str]
) -> None:
    dead = {shadow.route for shadow in shadowed(routes)}
    # For each name of a route: itself, or with * replaced by labels that no route has written out.
    tried = [*names, *(name.replace("*", "x.y", 1) for patterns in routes for name in patterns)]
    taken = {walk(routes, name) for name in tried} - {None}
    assert dead.isdisjoint(taken)
    assert dead | taken == set(range(len(routes)))


@given(ROUTES)
def test_a_shadowed_route_would_be_taken_without_the_routes_that_are_named(routes: list[list[str]]) -> None:
    for shadow in shadowed(routes):
        assert all(earlier < shadow.route for earlier in shadow.earlier)
        for name in routes[shadow.route]:
            tried = name.replace("*", "x.y", 1)
            assert walk(routes, tried) in shadow.earlier


def test_a_shadowed_route_names_those_before_it() -> None:
    assert shadowed([["*.net"], ["a.example"], ["hub.net", "a.example"], ["a.net", "b.example"]]) == [Shadow(2, (0, 1))]
    assert shadowed([["*.hub.net"], ["*.net"], ["*.a.hub.net"]]) == [Shadow(2, (0,))]
    assert shadowed([["hub.net"], ["hub.net"]]) == [Shadow(1, (0,))]
