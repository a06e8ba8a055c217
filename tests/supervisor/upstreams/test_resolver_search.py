"""The search list of resolv.conf against a real name server: what is passed over, what counts, and for how long."""

from __future__ import annotations

import asyncio
from pathlib import Path

import dns.rcode
import pytest

from relay.supervisor.upstreams import resolver as resolving
from relay.supervisor.upstreams.resolver import Resolver
from tests.support.name_server import NameServer, answer

NAME = "hub.plant.example"
BELOW = f"{NAME}.corp.test"
MORE = f"{NAME}.more.test"


@pytest.fixture
def searching(resolv_conf: Path, tmp_path: Path) -> Resolver:
    """For which NAME has too few dots to be complete."""
    resolv_conf.write_text("search corp.test more.test\nnameserver 127.0.0.1\noptions ndots:5\n")
    return Resolver([], tmp_path / "hosts")


@pytest.fixture
def complete(resolv_conf: Path, tmp_path: Path) -> Resolver:
    """For which NAME has enough dots."""
    resolv_conf.write_text("search corp.test more.test\nnameserver 127.0.0.1\n")
    return Resolver([], tmp_path / "hosts")


@pytest.mark.parametrize("rcode", [dns.rcode.SERVFAIL, dns.rcode.REFUSED, dns.rcode.NOTIMP])
async def test_a_search_domain_that_fails_is_passed_over(
    server: NameServer, searching: Resolver, rcode: dns.rcode.Rcode
) -> None:
    server.zone[BELOW, "A"] = server.zone[BELOW, "AAAA"] = rcode
    server.zone[NAME, "A"] = (60, ["192.0.2.1"])
    lookup = await answer(searching, NAME)
    assert (lookup.addresses, lookup.source, lookup.failed) == (("192.0.2.1",), NAME, (BELOW,))


async def test_a_search_domain_that_has_no_data_is_passed_over(server: NameServer, searching: Resolver) -> None:
    server.zone[BELOW, "TXT"] = (60, ["a wildcard of another type"])
    server.zone[NAME, "A"] = (60, ["192.0.2.1"])
    lookup = await answer(searching, NAME)
    assert (lookup.addresses, lookup.source, lookup.failed) == (("192.0.2.1",), NAME, ())


async def test_both_families_are_of_the_same_candidate(server: NameServer, searching: Resolver) -> None:
    server.zone[BELOW, "AAAA"] = (60, ["2001:db8::66"])
    server.zone[NAME, "A"] = (60, ["192.0.2.1"])
    assert (await answer(searching, NAME)).addresses == ("2001:db8::66",)


async def test_a_complete_name_is_asked_as_it_is_and_never_below_a_search_domain(
    server: NameServer, complete: Resolver
) -> None:
    server.zone[BELOW, "A"] = (60, ["127.0.0.66"])
    server.zone[BELOW, "AAAA"] = (60, ["2001:db8::66"])
    assert (await answer(complete, NAME)).error == f"{NAME} does not exist"
    server.zone[NAME, "TXT"] = (60, ["no address"])
    assert (await answer(complete, NAME)).error == f"{NAME} has no addresses"
    server.zone[NAME, "A"] = server.zone[NAME, "AAAA"] = dns.rcode.SERVFAIL
    assert (await answer(complete, NAME)).error == f"127.0.0.1:{server.address[1]}: SERVFAIL"
    server.zone[NAME, "A"], server.zone[NAME, "AAAA"] = (60, ["192.0.2.1"]), dns.rcode.NXDOMAIN
    assert (await answer(complete, NAME)).addresses == ("192.0.2.1",)
    assert not server.asked[BELOW, "A"] + server.asked[BELOW, "AAAA"]


async def test_a_dot_at_the_end_makes_any_name_complete(
    server: NameServer, searching: Resolver, tmp_path: Path
) -> None:
    server.zone[BELOW, "A"] = (60, ["127.0.0.66"])
    assert (await answer(searching, NAME)).addresses == ("127.0.0.66",)
    dotted = Resolver([], tmp_path / "hosts", complete=[NAME])
    assert (await answer(dotted, NAME)).error == f"{NAME} does not exist"


async def test_name_servers_of_the_settings_have_no_search_list(server: NameServer, searching: Resolver) -> None:
    server.zone["hub.corp.test", "A"] = (60, ["192.0.2.1"])
    assert (await answer(searching, "hub")).addresses == ("192.0.2.1",)
    assert (await answer(Resolver([server.address]), "hub")).error == "hub does not exist"


async def test_the_error_names_what_does_not_exist(server: NameServer, complete: Resolver) -> None:
    server.zone[NAME, "CNAME"] = (60, ["hub-7.cloudapp.example"])
    assert (await answer(complete, NAME)).error == f"hub-7.cloudapp.example does not exist (alias of {NAME})"
    server.zone["hub-7.cloudapp.example", "TXT"] = (60, ["no address"])
    assert (await answer(complete, NAME)).error == f"hub-7.cloudapp.example has no addresses (alias of {NAME})"


async def test_the_error_has_every_candidate_the_name_itself_first(server: NameServer, searching: Resolver) -> None:
    server.zone["hub.corp.test", "A"] = server.zone["hub.corp.test", "AAAA"] = dns.rcode.SERVFAIL
    port = server.address[1]
    expected = f"hub does not exist; hub.more.test does not exist; hub.corp.test: 127.0.0.1:{port}: SERVFAIL"
    assert (await answer(searching, "hub")).error == expected


async def test_a_dead_search_domain_leaves_time_for_the_name_itself(
    server: NameServer, searching: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its servers answer nothing; the name's own first datagram is lost as well."""
    monkeypatch.setattr(resolving, "NEXT_CANDIDATE", 0.05)
    monkeypatch.setattr(resolving, "SECOND_ANSWER", 0.05)
    monkeypatch.setattr(resolving, "NEXT_SERVER", 0.05)
    monkeypatch.setattr(resolving, "LIFETIME", 60.0)  # nobody waits for that
    server.silent |= {(name, kind) for name in (BELOW, MORE) for kind in ("A", "AAAA")}
    server.zone[NAME, "A"] = (60, ["192.0.2.1"])
    server.lost[NAME, "A"] = 1
    lookup = await answer(searching, NAME)
    assert (lookup.addresses, lookup.source, lookup.failed) == (("192.0.2.1",), NAME, (BELOW, MORE))
    left = asyncio.all_tasks() - {asyncio.current_task()}
    await asyncio.wait_for(asyncio.gather(*left, return_exceptions=True), 10)


async def test_the_last_of_many_candidates_begins_when_half_of_the_time_is_left(
    server: NameServer, resolv_conf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    domains = [f"d{number}.test" for number in range(20)]
    await asyncio.to_thread(
        resolv_conf.write_text, f"search {' '.join(domains)}\nnameserver 127.0.0.1\noptions ndots:5\n"
    )
    monkeypatch.setattr(resolving, "LIFETIME", 2.0)
    monkeypatch.setattr(resolving, "SECOND_ANSWER", 0.05)
    server.silent |= {(f"{NAME}.{domain}", kind) for domain in domains for kind in ("A", "AAAA")}
    server.zone[NAME, "A"] = (60, ["192.0.2.1"])
    assert (await answer(Resolver([], tmp_path / "hosts"), NAME)).source == NAME


async def test_an_earlier_candidate_that_is_slow_keeps_its_place(
    server: NameServer, searching: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolving, "NEXT_CANDIDATE", 0.05)
    monkeypatch.setattr(resolving, "SECOND_ANSWER", 30.0)
    monkeypatch.setattr(resolving, "LIFETIME", 60.0)
    server.zone[BELOW, "A"] = (60, ["192.0.2.1"])
    server.zone[NAME, "A"] = (60, ["192.0.2.2"])
    server.withheld |= {(BELOW, "A"), (BELOW, "AAAA")}
    task = asyncio.create_task(searching.resolve(NAME))
    await asyncio.to_thread(server.wait_for, NAME, "A")
    server.release()
    lookup = await asyncio.wait_for(task, 10)
    assert (lookup.addresses, lookup.source) == (("192.0.2.1",), BELOW)


async def test_candidates_after_an_answer_are_not_asked_for(server: NameServer, searching: Resolver) -> None:
    server.zone[BELOW, "A"] = (60, ["192.0.2.1"])
    assert (await answer(searching, NAME)).addresses == ("192.0.2.1",)
    assert set(server.asked) == {(BELOW, "A"), (BELOW, "AAAA")}


async def test_a_candidate_that_is_no_name_is_passed_over(
    server: NameServer, resolv_conf: Path, tmp_path: Path
) -> None:
    far = ".".join(["x" * 60] * 4)
    await asyncio.to_thread(resolv_conf.write_text, f"search {far} {'y' * 64}.test\nnameserver 127.0.0.1\n")
    server.zone["hub", "A"] = (60, ["192.0.2.1"])
    assert (await answer(Resolver([], tmp_path / "hosts"), "hub")).addresses == ("192.0.2.1",)
