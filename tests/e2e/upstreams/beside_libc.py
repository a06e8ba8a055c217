"""Runs in a namespace that has a resolv.conf of its own, for test_search_list.py: look-ups beside the C library's.

    python -m tests.e2e.upstreams.beside_libc EXAMPLES

Generated resolv.conf files and zones; each name is looked up by `getaddrinfo` in a process of its own, and by relay.
Prints a line of JSON: the number of examples, and how many differed, by the name of the deviation. There are these:

    complete    a complete name that has no addresses is not looked up below the search domains; libc goes on there
    family      one family's question fails: what the other one has is used; libc may take the candidate for failed
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import dns.rcode
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relay.core import search_list
from relay.supervisor.upstreams.resolver import Lookup, Resolver
from tests.support.name_server import NameServer

RESOLV_CONF = Path("/etc/resolv.conf")
LIBC = """
import json, socket, sys
try:
    found = {item[4][0] for item in socket.getaddrinfo(sys.argv[1], 443, type=socket.SOCK_STREAM)}
except socket.gaierror:
    found = set()
print(json.dumps(sorted(found)))
"""
LABELS = st.sampled_from(["hub", "plant", "x1"])
NAMES = st.lists(LABELS, min_size=1, max_size=3).map(".".join)
DOMAINS = st.sampled_from(["corp.test", "more.test", "plant.corp.test", "test", "Other.Test."])
LINES = st.lists(
    st.one_of(
        st.lists(DOMAINS, min_size=1, max_size=3).map(lambda domains: f"search {' '.join(domains)}"),
        DOMAINS.map(lambda domain: f"domain {domain}"),
        st.integers(0, 4).map(lambda ndots: f"options ndots:{ndots}"),
        st.sampled_from(["; search none.test", "# domain none.test", "options ndots:2 edns0", ""]),
    ),
    max_size=4,
)
STATES = st.sampled_from(["missing", "missing", "empty", "fails", "v4", "v6", "both", "alias", "dangling", "half"])

seen: Counter[str] = Counter()  # examples, and deviations by name


def fill(server: NameServer, name: str, state: str, number: int) -> None:
    """Let the zone say so of the name, whose addresses, if any, end in the number."""
    v4, v6 = (60, [f"192.0.2.{number}"]), (60, [f"2001:db8::{number}"])
    if state == "empty":
        server.zone[name, "TXT"] = (60, ["no address"])
    elif state == "fails":
        server.zone[name, "A"] = server.zone[name, "AAAA"] = dns.rcode.SERVFAIL
    elif state == "half":
        server.zone[name, "A"], server.zone[name, "AAAA"] = v4, dns.rcode.SERVFAIL
    elif state in ("alias", "dangling"):
        server.zone[name, "CNAME"] = (60, [f"target{number}.example"])
        if state == "alias":
            server.zone[f"target{number}.example", "A"] = v4
    if state in ("v4", "both"):
        server.zone[name, "A"] = v4
    if state in ("v6", "both"):
        server.zone[name, "AAAA"] = v6


def look_up(name: str, dot: bool) -> Lookup:
    resolver = Resolver([], Path("/nonexistent"), complete=[name] if dot else [])
    return asyncio.run(resolver.resolve(name))


def libc(name: str) -> set[str]:
    done = subprocess.run([sys.executable, "-ISc", LIBC, name], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


def compare(server: NameServer, lines: list[str], name: str, dot: bool, states: list[str]) -> None:
    seen["examples"] += 1
    conf = "\n".join([*lines, "nameserver 127.0.0.1", "options timeout:1 attempts:1", ""])
    RESOLV_CONF.write_text(conf)
    search = search_list.parse(conf, "relay")
    asked = [name, *(f"{name}.{domain}" for domain in search.domains)]
    server.zone.clear()
    for number, candidate in enumerate(dict.fromkeys(asked)):
        fill(server, candidate, states[number], number + 1)
    expected = libc(f"{name}." if dot else name)
    found = look_up(name, dot)
    if set(found.addresses) == expected:
        return
    if search_list.is_complete(name, search) and not found.addresses:
        assert not any(address.endswith((".1", ":1")) for address in expected), "libc has it from below a domain"
        seen["complete"] += 1
        return
    (state,) = [states[number] for number, one in enumerate(dict.fromkeys(asked)) if one == found.source]
    assert state == "half", (conf, name, server.zone, found, expected)
    seen["family"] += 1


def main() -> None:
    server = NameServer(port=53)

    @settings(max_examples=int(sys.argv[1]), deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(LINES, NAMES, st.booleans(), st.lists(STATES, min_size=5, max_size=5))
    def beside(lines: list[str], name: str, dot: bool, states: list[str]) -> None:
        compare(server, lines, name, dot, states)

    try:
        beside()
    finally:
        server.close()
    sys.stdout.write(json.dumps(seen) + "\n")


if __name__ == "__main__":
    main()
