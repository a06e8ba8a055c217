"""Look-ups against a real name server on loopback."""

from __future__ import annotations

import asyncio
import ipaddress
from pathlib import Path

import dns.asyncresolver
import dns.rcode
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay import resolve
from relay.resolve import Resolver, parse_hosts
from tests.unit.name_server import HUB, PRIVATE, NameServer, answer


async def test_both_families_ipv4_first(server: NameServer, resolver: Resolver) -> None:
    server.zone[HUB, "A"] = (60, ["192.0.2.1", "192.0.2.2"])
    server.zone[HUB, "AAAA"] = (60, ["2001:db8::1"])
    lookup = await answer(resolver)
    assert set(lookup.addresses[:2]) == {"192.0.2.1", "192.0.2.2"}
    assert lookup.addresses[2:] == ("2001:db8::1",)
    assert lookup.error == ""


async def test_aliases_are_followed(server: NameServer, resolver: Resolver) -> None:
    server.zone[HUB, "CNAME"] = (60, [PRIVATE])
    server.zone[PRIVATE, "A"] = (60, ["10.0.0.4"])
    assert (await answer(resolver)).addresses == ("10.0.0.4",)


@pytest.mark.parametrize(("broken", "works", "address"), [("AAAA", "A", "192.0.2.1"), ("A", "AAAA", "2001:db8::1")])
async def test_one_type_works_though_the_other_fails(
    server: NameServer, resolver: Resolver, broken: str, works: str, address: str
) -> None:
    server.zone[HUB, broken] = dns.rcode.SERVFAIL
    server.zone[HUB, works] = (60, [address])
    assert (await answer(resolver)).addresses == (address,)


async def test_a_server_that_swallows_aaaa_does_not_hold_up_ipv4(server: NameServer, resolver: Resolver) -> None:
    server.zone[HUB, "A"] = (60, ["192.0.2.1"])
    server.silent.add((HUB, "AAAA"))
    started = asyncio.get_running_loop().time()
    assert (await answer(resolver)).addresses == ("192.0.2.1",)
    assert asyncio.get_running_loop().time() - started < resolve.LIFETIME / 2


async def test_a_name_without_addresses(server: NameServer, resolver: Resolver) -> None:
    server.zone[HUB, "TXT"] = (60, ["nothing to dial"])
    lookup = await answer(resolver)
    assert lookup.addresses == ()
    assert lookup.error == "the name has no addresses"


async def test_the_reason_is_the_servers_failure_and_not_the_empty_answer_beside_it(
    server: NameServer, resolver: Resolver
) -> None:
    server.zone[HUB, "A"] = dns.rcode.SERVFAIL
    assert "SERVFAIL" in (await answer(resolver)).error


async def test_a_server_that_is_silent_costs_no_more_than_the_lifetime(
    server: NameServer, resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolve, "LIFETIME", 0.2)
    server.silent |= {(HUB, "A"), (HUB, "AAAA")}
    started = asyncio.get_running_loop().time()
    lookup = await answer(resolver)
    assert lookup.addresses == ()
    assert "lifetime" in lookup.error
    assert 0.2 <= asyncio.get_running_loop().time() - started < 5


async def test_the_search_list_of_resolv_conf(
    server: NameServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conf = tmp_path / "resolv.conf"
    conf.write_text("search other.example plant.example\nnameserver 127.0.0.1\n")

    def system_resolver() -> dns.asyncresolver.Resolver:
        made = dns.asyncresolver.Resolver(filename=str(conf))
        made.port = server.address[1]
        return made

    monkeypatch.setattr(resolve, "_system_resolver", system_resolver)
    server.zone["hub.plant.example", "A"] = (60, ["192.0.2.1"])
    assert (await answer(Resolver([], tmp_path / "hosts"), "hub")).addresses == ("192.0.2.1",)
    assert server.asked["hub.other.example", "A"] == 1, "in the order of the list"


async def test_a_machine_without_name_servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve, "_system_resolver", lambda: None)
    lookup = await answer(Resolver([], tmp_path / "hosts"))
    assert lookup.error == "no name servers: /etc/resolv.conf names none"


async def test_a_changed_resolv_conf_is_read_again(
    server: NameServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conf = tmp_path / "resolv.conf"
    read = 0
    original = resolve._system_resolver

    def system_resolver() -> dns.asyncresolver.Resolver | None:
        nonlocal read
        read += 1
        made = original()
        if made is not None:
            made.port = server.address[1]
        return made

    monkeypatch.setattr(resolve, "RESOLV_CONF", conf)
    monkeypatch.setattr(resolve, "_system_resolver", system_resolver)
    server.zone["hub.plant.example", "A"] = (60, ["192.0.2.1"])
    server.zone["hub.works.example", "A"] = (60, ["192.0.2.2"])
    resolver = Resolver([], tmp_path / "hosts")
    assert (await resolver.resolve("hub")).error == f"no name servers: {conf} names none"
    conf.write_text("search plant.example\nnameserver 127.0.0.1\n")
    assert (await resolver.resolve("hub")).addresses == ("192.0.2.1",)
    assert (await resolver.resolve("hub")).addresses == ("192.0.2.1",)
    assert read == 2, "not again as long as it stays the same"
    replacement = tmp_path / "new"
    replacement.write_text("search works.example\nnameserver 127.0.0.1\n")
    replacement.rename(conf)
    assert (await resolver.resolve("hub")).addresses == ("192.0.2.2",)
    for useless in ("", "nameserver 127.0.0\n"):  # it may be just being written
        conf.write_text(useless)
        assert (await resolver.resolve("hub")).addresses == ("192.0.2.2",)
    conf.unlink()
    assert (await resolver.resolve("hub")).addresses == ("192.0.2.2",)


# --- the hosts file --------------------------------------------------------------------------------------------------


async def test_the_hosts_file_comes_before_dns_and_is_read_again(server: NameServer, tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text(f"10.0.0.4 {HUB}\n")
    resolver = Resolver([server.address], hosts)
    assert (await answer(resolver)).addresses == ("10.0.0.4",)
    assert not server.asked
    hosts.write_text(f"10.0.0.5 {HUB}\n")
    assert (await answer(resolver)).addresses == ("10.0.0.5",)


def test_hosts_lines() -> None:
    text = (
        "# 192.0.2.9 hub\n"
        "127.0.0.1 localhost\n"
        "2001:db8::1\thub other # hub2\n"
        "not-an-address hub\n"
        "192.0.2.1   Hub.  hub\n"
        "192.0.2.1 hub\n"
        "192.0.2.2 hubs\n"
        "192.0.2.3"
    )
    assert parse_hosts(text, "HUB") == ("192.0.2.1", "2001:db8::1")
    assert parse_hosts(text, "hub.") == ("192.0.2.1", "2001:db8::1")
    assert parse_hosts(text, "hub2") == ()


@settings(deadline=None)
@given(
    st.text()
    | st.lists(st.sampled_from(["192.0.2.1", "::1", "hub", "#", "\n", " ", "\t", "fe80::1%eth0"])).map("".join)
)
def test_any_hosts_file_gives_addresses_or_none(text: str) -> None:
    addresses = parse_hosts(text, "hub")
    versions = [ipaddress.ip_address(address).version for address in addresses]
    assert versions == sorted(versions)
    assert len(set(addresses)) == len(addresses)


ADDRESSES = st.ip_addresses().map(str)
NAMES = st.text("abcdefghijklmnopqrstuvwxyz0123456789-", min_size=1)


@settings(deadline=None)
@given(st.lists(st.tuples(ADDRESSES, st.lists(NAMES, min_size=1)), min_size=1), st.data())
def test_every_name_of_a_line_has_its_address(lines: list[tuple[str, list[str]]], data: st.DataObject) -> None:
    text = "".join(f"{address} {' '.join(names)}\n" for address, names in lines)
    name = data.draw(st.sampled_from(lines))[1][-1]
    expected = {address for address, names in lines if name in names}
    assert set(parse_hosts(text, name.upper())) == expected
