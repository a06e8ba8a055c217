"""Look-ups against a real name server on loopback."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import threading
from pathlib import Path

import dns.rcode
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.supervisor.upstreams import resolver as resolving
from relay.supervisor.upstreams.resolver import Resolver, parse_hosts
from tests.support.name_server import HUB, PRIVATE, NameServer, answer


async def test_both_families_ipv4_first(server: NameServer, resolver: Resolver) -> None:
    server.zone[HUB, "A"] = (60, ["192.0.2.1", "192.0.2.2"])
    server.zone[HUB, "AAAA"] = (60, ["2001:db8::1"])
    lookup = await answer(resolver)
    assert set(lookup.addresses[:2]) == {"192.0.2.1", "192.0.2.2"}
    assert lookup.addresses[2:] == ("2001:db8::1",)
    assert lookup.error == ""


async def test_what_was_read_of_the_systems_files_outlives_a_reload(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts, conf = tmp_path / "hosts", tmp_path / "resolv.conf"
    hosts.write_text("192.0.2.7 hub.test\n")
    conf.write_text("nameserver 127.0.0.1\n")
    monkeypatch.setattr(resolving, "RESOLV_CONF", conf)
    first = Resolver((), hosts)
    assert (await first.resolve("hub.test")).addresses == ("192.0.2.7",)
    hosts.unlink()
    os.mkfifo(hosts)  # cannot be read any more
    second = Resolver((), hosts, ["other.test"], first)
    assert (await second.resolve("hub.test")).addresses == ("192.0.2.7",)
    assert second.complete == {"other.test"}


@pytest.mark.parametrize("bad", ["10.0.0.300", "", "hub.test", "fe80::1%eth0%x"])
def test_a_name_server_that_is_no_address_does_not_spoil_the_others(bad: str) -> None:
    system = resolving._parse_resolv_conf(f"nameserver {bad}\nnameserver 192.0.2.53\noptions ndots:2\n")
    assert system is not None
    assert [str(server) for server in system.resolver.nameservers] == [
        str(resolving._NameServers([("192.0.2.53", 53)]))
    ]


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
    assert asyncio.get_running_loop().time() - started < resolving.LIFETIME / 2


async def test_a_name_without_addresses(server: NameServer, resolver: Resolver) -> None:
    server.zone[HUB, "TXT"] = (60, ["nothing to dial"])
    lookup = await answer(resolver)
    assert lookup.addresses == ()
    assert lookup.error == f"{HUB} has no addresses"


async def test_the_reason_is_the_servers_failure_and_not_the_empty_answer_beside_it(
    server: NameServer, resolver: Resolver
) -> None:
    server.zone[HUB, "A"] = dns.rcode.SERVFAIL
    assert "SERVFAIL" in (await answer(resolver)).error


async def test_a_server_that_is_silent_costs_no_more_than_the_lifetime(
    server: NameServer, resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolving, "LIFETIME", 0.2)
    server.silent |= {(HUB, "A"), (HUB, "AAAA")}
    started = asyncio.get_running_loop().time()
    lookup = await answer(resolver)
    assert lookup.addresses == ()
    assert "lifetime" in lookup.error
    assert 0.2 <= asyncio.get_running_loop().time() - started < 5


async def test_the_search_list_of_resolv_conf(server: NameServer, tmp_path: Path, resolv_conf: Path) -> None:
    write(resolv_conf, "search other.example plant.example\nnameserver 127.0.0.1\n")
    server.zone["hub.plant.example", "A"] = (60, ["192.0.2.1"])
    lookup = await answer(Resolver([], tmp_path / "hosts"), "hub")
    assert (lookup.addresses, lookup.source) == (("192.0.2.1",), "hub.plant.example")
    assert server.asked["hub.other.example", "A"] == 1, "in the order of the list"


async def test_a_machine_without_name_servers(tmp_path: Path, resolv_conf: Path) -> None:
    lookup = await answer(Resolver([], tmp_path / "hosts"))
    assert lookup.error == f"no name servers: {resolv_conf} names none"


async def test_a_changed_resolv_conf_is_read_again(
    server: NameServer, tmp_path: Path, resolv_conf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = 0
    original = resolving._parse_resolv_conf

    def parse(text: str) -> resolving._DnsConfig | None:
        nonlocal read
        read += 1
        return original(text)

    monkeypatch.setattr(resolving, "_parse_resolv_conf", parse)
    server.zone["hub.plant.example", "A"] = (60, ["192.0.2.1"])
    server.zone["hub.works.example", "A"] = (60, ["192.0.2.2"])
    resolver = Resolver([], tmp_path / "hosts")
    assert (await resolver.resolve("hub")).error == f"no name servers: {resolv_conf} names none"
    write(resolv_conf, "search plant.example\nnameserver 127.0.0.1\n")
    past(resolv_conf)
    assert (await resolver.resolve("hub")).addresses == ("192.0.2.1",)
    assert (await resolver.resolve("hub")).addresses == ("192.0.2.1",)
    assert read == 1, "not again as long as it stays the same"
    replacement = tmp_path / "new"
    replacement.write_text("search works.example\nnameserver 127.0.0.1\n")
    replacement.rename(resolv_conf)
    assert (await resolver.resolve("hub")).addresses == ("192.0.2.2",)
    for useless in ("", "nameserver 127.0.0\n"):  # it may be just being written
        write(resolv_conf, useless)
        assert (await resolver.resolve("hub")).addresses == ("192.0.2.2",)
    remove(resolv_conf)
    assert (await resolver.resolve("hub")).addresses == ("192.0.2.2",)


def write(path: Path, text: str) -> None:
    path.write_text(text)


def remove(path: Path) -> None:
    path.unlink()


def past(path: Path) -> None:
    """As if the file had not been written just now, but a minute ago."""
    state = path.stat()
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns - 60 * 10**9))


# --- the hosts file --------------------------------------------------------------------------------------------------


async def test_the_hosts_file_comes_before_dns_and_is_read_again(server: NameServer, tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text(f"10.0.0.4 {HUB}\n")
    resolver = Resolver([server.address], hosts)
    assert (await answer(resolver)).addresses == ("10.0.0.4",)
    assert not server.asked
    hosts.write_text(f"10.0.0.5 {HUB}\n")
    assert (await answer(resolver)).addresses == ("10.0.0.5",), "though it looks the same, but for its time"
    hosts.unlink()
    server.zone[HUB, "A"] = (60, ["192.0.2.1"])
    assert (await answer(resolver)).addresses == ("192.0.2.1",)


async def test_the_hosts_file_is_parsed_once_per_change(
    server: NameServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[threading.Thread] = []
    original = resolving.parse_hosts

    def parse(text: str) -> dict[str, tuple[str, ...]]:
        threads.append(threading.current_thread())
        return original(text)

    monkeypatch.setattr(resolving, "parse_hosts", parse)
    hosts = tmp_path / "hosts"
    hosts.write_text(f"10.0.0.4 {HUB}\n")
    past(hosts)
    resolver = Resolver([server.address], hosts)
    for _ in range(5):
        assert (await answer(resolver)).addresses == ("10.0.0.4",)
    assert len(threads) == 1
    assert threading.main_thread() not in threads, "and not by the event loop's thread"


def test_hosts_lines() -> None:
    text = (
        "# 192.0.2.9 hub\n"
        "127.0.0.1 localhost\n"
        "2001:db8::1\thub other # hub2\n"
        "not-an-address hub\n"
        "fe80::1%eth0 hub\n"
        "192.0.2.1   Hub.  hub\n"
        "192.0.2.1 hub\n"
        "::ffff:192.0.2.4 hub\n"
        "192.0.2.2 hubs\n"
        "192.0.2.3"
    )
    assert parse_hosts(text) == {
        "localhost": ("127.0.0.1",),
        "hub": ("192.0.2.1", "192.0.2.4", "2001:db8::1"),
        "other": ("2001:db8::1",),
        "hubs": ("192.0.2.2",),
    }


@settings(deadline=None)
@given(
    st.text()
    | st.lists(st.sampled_from(["192.0.2.1", "::1", "hub", "#", "\n", " ", "\t", "fe80::1%eth0"])).map("".join)
)
def test_any_hosts_file_gives_addresses_or_none(text: str) -> None:
    for addresses in parse_hosts(text).values():
        versions = [ipaddress.ip_address(address).version for address in addresses]
        assert versions == sorted(versions)
        assert 0 < len(set(addresses)) == len(addresses)


ADDRESSES = st.ip_addresses().filter(lambda address: address.version == 4 or not address.ipv4_mapped).map(str)
NAMES = st.text("abcdefghijklmnopqrstuvwxyz0123456789-", min_size=1)


@settings(deadline=None)
@given(st.lists(st.tuples(ADDRESSES, st.lists(NAMES, min_size=1)), min_size=1), st.data())
def test_every_name_of_a_line_has_its_address(lines: list[tuple[str, list[str]]], data: st.DataObject) -> None:
    text = "".join(f"{address} {' '.join(names)}\n" for address, names in lines)
    name = data.draw(st.sampled_from(lines))[1][-1]
    expected = {address for address, names in lines if name in names}
    assert set(parse_hosts(text.upper())[name]) == expected
