"""Several name servers, and bad ones: who is asked when, and what is made of what they say."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import dns.asyncresolver
import dns.rcode
import pytest

from relay.supervisor.upstreams import resolver as resolving
from relay.supervisor.upstreams.resolver import Resolver
from tests.support.name_server import HUB, PRIVATE, NameServer


@pytest.fixture
def second() -> Iterator[NameServer]:
    made = NameServer()
    yield made
    made.close()


async def test_a_dead_server_among_two_is_found_out_once(
    server: NameServer, second: NameServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolving, "NEXT_SERVER", 0.05)
    server.silent |= {(HUB, "A"), (HUB, "AAAA")}
    second.zone[HUB, "A"] = (60, ["192.0.2.1"])
    resolver = Resolver([server.address, second.address], tmp_path / "hosts")
    assert (await resolver.resolve(HUB)).addresses == ("192.0.2.1",)
    assert server.asked[HUB, "A"] >= 1
    monkeypatch.setattr(resolving, "NEXT_SERVER", 60)  # from now on, whoever is asked first has to answer
    server.asked.clear()
    assert (await resolver.resolve(HUB)).addresses == ("192.0.2.1",)
    assert not server.asked


@pytest.mark.parametrize("rcode", [dns.rcode.SERVFAIL, dns.rcode.REFUSED, dns.rcode.NOTIMP])
async def test_a_server_that_fails_has_the_next_one_asked_at_once(
    server: NameServer,
    second: NameServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rcode: dns.rcode.Rcode,
) -> None:
    monkeypatch.setattr(resolving, "NEXT_SERVER", 60)
    server.zone[HUB, "A"] = server.zone[HUB, "AAAA"] = rcode
    second.zone[HUB, "A"] = (60, ["192.0.2.1"])
    lookup = await Resolver([server.address, second.address], tmp_path / "hosts").resolve(HUB)
    assert lookup.addresses == ("192.0.2.1",)
    assert server.asked[HUB, "A"] == 1


async def test_the_reason_has_each_server_in_the_order_of_the_settings(
    server: NameServer, second: NameServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolving, "NEXT_SERVER", 0.05)
    resolver = Resolver([server.address, second.address], tmp_path / "hosts")
    server.silent |= {(HUB, "A"), (HUB, "AAAA")}
    second.zone[HUB, "A"] = (60, ["192.0.2.1"])
    assert (await resolver.resolve(HUB)).addresses == ("192.0.2.1",)  # the second is asked first from now on
    monkeypatch.setattr(resolving, "LIFETIME", 0.3)
    second.zone[HUB, "A"] = second.zone[HUB, "AAAA"] = dns.rcode.REFUSED
    second.asked.clear()
    lookup = await resolver.resolve(HUB)
    ports = server.address[1], second.address[1]
    silent = "no answer in the look-up's lifetime of 0.3 s"
    assert lookup.error == f"127.0.0.1:{ports[0]}: {silent}; 127.0.0.1:{ports[1]}: REFUSED"
    assert second.asked == {(HUB, "A"): 1, (HUB, "AAAA"): 1}, "not again after a definite answer"


async def test_a_server_that_is_named_twice_is_asked_once(server: NameServer, tmp_path: Path) -> None:
    server.zone[HUB, "A"] = server.zone[HUB, "AAAA"] = dns.rcode.SERVFAIL
    lookup = await Resolver([server.address] * 2, tmp_path / "hosts").resolve(HUB)
    assert lookup.error == f"127.0.0.1:{server.address[1]}: SERVFAIL"
    assert server.asked == {(HUB, "A"): 1, (HUB, "AAAA"): 1}


async def test_a_port_where_nobody_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolving, "LIFETIME", 0.2)
    monkeypatch.setattr(resolving, "NEXT_SERVER", 60)  # the lifetime ends the wait for the next server's turn
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as reserved:  # of the same number for UDP, nobody's
        reserved.bind(("127.0.0.1", 0))
        resolver = Resolver([reserved.getsockname()], tmp_path / "hosts")
        lookup = await asyncio.wait_for(resolver.resolve(HUB), 10)
    assert lookup.addresses == ()
    assert "127.0.0.1" in lookup.error


async def test_a_server_that_needs_longer_than_the_next_one_is_heard_all_the_same(
    server: NameServer, second: NameServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolving, "LIFETIME", 60)
    monkeypatch.setattr(resolving, "NEXT_SERVER", 0.05)
    server.zone[HUB, "A"] = (60, ["192.0.2.1"])
    server.withheld.add((HUB, "A"))
    second.silent.add((HUB, "A"))
    resolver = Resolver([server.address, second.address], tmp_path / "hosts")
    task = asyncio.create_task(resolver.resolve(HUB))
    await asyncio.to_thread(second.wait_for, HUB, "A")
    monkeypatch.setattr(resolving, "NEXT_SERVER", 60)  # it is heard when it answers, not at the next turn
    await asyncio.to_thread(server.wait_for, HUB, "A", 2)
    server.release()
    assert (await asyncio.wait_for(task, 10)).addresses == ("192.0.2.1",)


async def test_a_family_without_addresses_does_not_cut_the_other_short(
    server: NameServer, resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolving, "SECOND_ANSWER", 0.01)
    monkeypatch.setattr(resolving, "NEXT_SERVER", 0.1)
    server.zone[HUB, "AAAA"] = (60, ["2001:db8::1"])
    server.withheld.add((HUB, "AAAA"))
    task = asyncio.create_task(resolver.resolve(HUB))
    await asyncio.to_thread(server.wait_for, HUB, "AAAA", 2)  # the time for a second answer is over by then
    server.release()
    assert (await task).addresses == ("2001:db8::1",)


async def test_a_lost_datagram_is_sent_again(
    server: NameServer, resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolving, "NEXT_SERVER", 0.05)
    server.zone[HUB, "A"] = (60, ["192.0.2.1"])
    server.zone[HUB, "AAAA"] = (60, ["2001:db8::1"])
    server.lost[HUB, "A"] = server.lost[HUB, "AAAA"] = 1
    lookup = await resolver.resolve(HUB)
    assert lookup.addresses == ("192.0.2.1", "2001:db8::1")
    assert server.asked == {(HUB, "A"): 2, (HUB, "AAAA"): 2}
    # Nobody waits for the first ones' answers any more.
    left = asyncio.all_tasks() - {asyncio.current_task()}
    await asyncio.wait_for(asyncio.gather(*left, return_exceptions=True), 10)


async def test_what_a_datagram_does_not_hold_is_asked_for_over_tcp(server: NameServer, resolver: Resolver) -> None:
    addresses = [f"192.0.2.{n}" for n in range(1, 101)]
    server.zone[HUB, "A"] = (60, addresses)
    server.truncated.add((HUB, "A"))
    lookup = await resolver.resolve(HUB)
    assert set(lookup.addresses) == set(addresses)
    assert server.asked_over_tcp == {(HUB, "A"): 1}


async def test_a_name_server_with_an_ipv6_address(tmp_path: Path) -> None:
    try:
        server = NameServer("::1")
    except OSError as error:
        pytest.skip(f"no IPv6 on loopback: {error}")
    try:
        server.zone[HUB, "A"] = (60, ["192.0.2.1"])
        lookup = await Resolver([server.address], tmp_path / "hosts").resolve(HUB)
        assert lookup.addresses == ("192.0.2.1",)
    finally:
        server.close()


@pytest.mark.parametrize("step", [-86400.0, 86400.0])
async def test_a_step_of_the_wall_clock_is_no_end_of_a_look_up(
    server: NameServer, resolver: Resolver, monkeypatch: pytest.MonkeyPatch, step: float
) -> None:
    monkeypatch.setattr(resolving, "NEXT_SERVER", 0.05)
    server.zone[HUB, "A"] = (60, ["192.0.2.1"])
    server.lost[HUB, "A"] = 2
    task = asyncio.create_task(resolver.resolve(HUB))
    await asyncio.to_thread(server.wait_for, HUB, "A")
    original = time.time
    monkeypatch.setattr(time, "time", lambda: original() + step)
    assert (await task).addresses == ("192.0.2.1",)


@pytest.mark.parametrize("ttl", [0, 1, 300, 2**31 - 1])
async def test_the_ttl_is_told_as_it_is(server: NameServer, resolver: Resolver, ttl: int) -> None:
    server.zone[HUB, "A"] = (ttl, ["192.0.2.1"])
    assert (await resolver.resolve(HUB)).ttl == ttl


async def test_the_least_ttl_of_a_chain_counts(server: NameServer, resolver: Resolver) -> None:
    server.zone[HUB, "CNAME"] = (300, ["second.example"])
    server.zone["second.example", "CNAME"] = (7, [PRIVATE])
    server.zone[PRIVATE, "A"] = (3600, ["10.0.0.4"])
    server.zone[PRIVATE, "AAAA"] = (60, ["2001:db8::1"])
    assert (await resolver.resolve(HUB)).ttl == 7


@pytest.mark.parametrize("how", ["silent", "SERVFAIL"])
@pytest.mark.parametrize(("broken", "works"), [("AAAA", "A"), ("A", "AAAA")])
async def test_a_family_that_was_asked_for_in_vain_is_named(
    server: NameServer, resolver: Resolver, monkeypatch: pytest.MonkeyPatch, how: str, broken: str, works: str
) -> None:
    monkeypatch.setattr(resolving, "SECOND_ANSWER", 0.1)
    server.zone[HUB, works] = (60, ["192.0.2.1" if works == "A" else "2001:db8::1"])
    assert (await resolver.resolve(HUB)).unanswered == "", "there being none is an answer"
    server.zone[HUB, broken] = dns.rcode.NXDOMAIN  # wrong, but as clear
    assert (await resolver.resolve(HUB)).unanswered == ""
    if how == "silent":
        server.silent.add((HUB, broken))
    else:
        server.zone[HUB, broken] = dns.rcode.SERVFAIL
    lookup = await resolver.resolve(HUB)
    assert len(lookup.addresses) == 1
    assert lookup.unanswered == broken
