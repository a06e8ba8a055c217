"""The search list of resolv.conf(5): which absolute names a host name stands for, in the order in which they are asked.

The order is that of glibc's res_search (resolv/res_query.c): a name with at least `ndots` dots is asked as it is first,
one with fewer is asked below each search domain first, and as it is after them. It differs in two ways, on purpose:

  - A complete name, which has `ndots` dots or more and at least one, or a dot at its end, is never asked below a search
    domain. glibc would do so when the name itself fails, and so a wildcard in a search domain takes the place of a name
    that is gone for a moment. systemd-resolved and ICANN's SAC064 ("SSAC Advisory on Search List Processing") leave
    names with dots alone as well.
  - The name itself is always among them (`options no-tld-query` is not read, nor are LOCALDOMAIN and RES_OPTIONS).
"""

from __future__ import annotations

from typing import NamedTuple

MAX_NDOTS = 15  # RES_MAXNDOTS, resolv.h


class SearchList(NamedTuple):
    """Search domains in order, without a dot at the end ("" is the root), and how many dots make a name complete."""

    domains: tuple[str, ...] = ()
    ndots: int = 1


def parse(text: str, hostname: str) -> SearchList:
    """The search list of a resolv.conf(5); the last of its `search` and `domain` lines counts.

    Without such a line it is the domain of `hostname`, this machine's name.
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
    """Whether the name stands for itself alone; `name` may have a dot at its end, which says so."""
    return name.endswith(".") or name.count(".") >= max(1, search.ndots)


def candidates(name: str, search: SearchList) -> tuple[str, ...]:
    """The absolute names to ask for, in order, each once and without a dot at the end; the name itself among them."""
    bare = name.rstrip(".")
    if is_complete(name, search):
        return (bare,)
    below = [f"{bare}.{domain}" if domain else bare for domain in search.domains]
    return tuple(dict.fromkeys([*below, bare] if bare.count(".") < search.ndots else [bare, *below]))
