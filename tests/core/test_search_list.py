"""Which absolute names a host name stands for, beside a model of glibc's res_search."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core.search_list import MAX_NDOTS, SearchList, candidates, is_complete, parse

LABELS = st.sampled_from(["hub", "plant", "corp", "x1"])
BARE = st.lists(LABELS, min_size=1, max_size=5).map(".".join)
NAMES = st.one_of(BARE, BARE.map(lambda name: f"{name}."))
DOMAINS = st.lists(st.one_of(st.just(""), st.lists(LABELS, min_size=1, max_size=3).map(".".join)), max_size=4)
LISTS = st.builds(SearchList, DOMAINS.map(tuple), st.integers(0, MAX_NDOTS))


def res_search(name: str, search: SearchList) -> list[str]:
    """What glibc asks for when each answer is NXDOMAIN, in order (resolv/res_query.c, __res_context_search)."""
    dots, trailing_dot = name.count("."), name.endswith(".")
    asked = []
    tried_as_is = root_on_list = False
    if dots >= search.ndots or trailing_dot:
        asked.append(name.removesuffix("."))
        if trailing_dot:
            return asked
        tried_as_is = True
    for domain in search.domains:
        root_on_list = root_on_list or not domain
        asked.append(f"{name}.{domain}" if domain else name)
    if not tried_as_is and not root_on_list:
        asked.append(name)
    return asked


@given(NAMES, LISTS)
def test_the_order_is_glibc_s(name: str, search: SearchList) -> None:
    model = list(dict.fromkeys(res_search(name, search)))
    found = candidates(name, search)
    if is_complete(name, search):
        assert found == (model[0],) == (name.removesuffix("."),), "a complete name is not searched, as glibc would"
    else:
        assert list(found) == model


@given(NAMES, LISTS)
def test_the_name_itself_is_always_asked_for_and_nothing_twice(name: str, search: SearchList) -> None:
    found = candidates(name, search)
    assert name.removesuffix(".") in found
    assert len(set(found)) == len(found)


@given(BARE, LISTS)
def test_a_dot_at_the_end_is_complete_whatever_ndots_says(name: str, search: SearchList) -> None:
    assert candidates(f"{name}.", search) == (name,)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", SearchList(("here.test",))),
        ("nameserver 192.0.2.1\n", SearchList(("here.test",))),
        ("search Corp.test  plant.test.\n", SearchList(("corp.test", "plant.test"))),
        ("search a.test\nsearch b.test c.test\n", SearchList(("b.test", "c.test"))),
        ("search a.test b.test\ndomain c.test ignored\n", SearchList(("c.test",))),
        ("domain c.test\nsearch a.test b.test\n", SearchList(("a.test", "b.test"))),
        ("search .\n", SearchList(("",))),
        ("search\n", SearchList(("here.test",))),
        ("# search a.test\n; search b.test\n", SearchList(("here.test",))),
        ("search a.test\noptions timeout:1 ndots:5 rotate\n", SearchList(("a.test",), 5)),
        ("search a.test\noptions ndots:0\n", SearchList(("a.test",), 0)),
        ("search a.test\noptions ndots:99\n", SearchList(("a.test",), MAX_NDOTS)),
        ("search a.test\noptions ndots: ndots:x ndots\n", SearchList(("a.test",))),
    ],
)
def test_resolv_conf(text: str, expected: SearchList) -> None:
    assert parse(text, "relay-7.here.test") == expected


def test_a_machine_without_a_domain() -> None:
    assert parse("nameserver 192.0.2.1\n", "relay-7") == SearchList()


@given(st.text())
def test_any_text_is_a_search_list(text: str) -> None:
    search = parse(text, "relay")
    assert 0 <= search.ndots <= MAX_NDOTS
    assert "hub" in candidates("hub", search)
