"""The search list of resolv.conf(5): the absolute names to query for a host name, in order.

The order is that of glibc's res_search (resolv/res_query.c): a name with at least `ndots` dots is queried as it is
first, a name with fewer below each search domain first, and as it is after them. Two differences are on purpose:

  - A complete name (`ndots` dots or more and at least one, or a dot at its end) is never queried below a search domain.
    glibc does so when the name itself fails, so that a wildcard in a search domain can replace a name that is missing
    for a moment. systemd-resolved and ICANN's SAC064 ("SSAC Advisory on Search List Processing") do not search for
    names with dots either.
  - The name itself is always queried (`options no-tld-query`, LOCALDOMAIN and RES_OPTIONS are not read).
"""

from __future__ import annotations

from typing import NamedTuple

MAX_NDOTS = 15  # RES_MAXNDOTS, resolv.h


class SearchList(NamedTuple):
    """Search domains in order, without a dot at the end ("" is the root), and how many dots make a name complete."""

    domains: tuple[str, ...] = ()
    ndots: int = 1


def parse(text: str, hostname: str) -> SearchList:
    """The search list in the text of a resolv.conf(5); the last `search` or `domain` line counts.

    Without such a line the search list is the domain of `hostname`, this machine's name.
    """
    domains: list[str] | None = None
    ndots = 1
    for line in text.splitlines():
        if line[:1] in ("#", ";"):
            continue
        keyword, *values = line.split() or [""]
        if keyword == "search" and values:
            domains = values
        elif keyword == "domain" and values:
            domains = values[:1]
        elif keyword == "options":
            for option in values:
                name, _, number = option.partition(":")
                if name == "ndots" and number.isascii() and number.isdigit():
                    ndots = min(int(number[:6]), MAX_NDOTS)
    if domains is None:
        _, _, domain = hostname.partition(".")
        domains = [domain] if domain else []
    return SearchList(tuple(domain.strip(".").lower() for domain in domains), ndots)


def is_complete(name: str, search: SearchList) -> bool:
    """Whether the search list does not apply to the name: it has enough dots, or a dot at its end."""
    return name.endswith(".") or name.count(".") >= max(1, search.ndots)


def candidates(name: str, search: SearchList) -> tuple[str, ...]:
    """The absolute names to query, in order, without duplicates and trailing dots; the name itself is among them."""
    bare = name.rstrip(".")
    if is_complete(name, search):
        return (bare,)
    below = [f"{bare}.{domain}" if domain else bare for domain in search.domains]
    return tuple(dict.fromkeys([*below, bare] if bare.count(".") < search.ndots else [bare, *below]))
