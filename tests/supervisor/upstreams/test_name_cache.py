"""Names kept fresh, against a real name server on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import dns.rcode
import pytest

from relay.supervisor.upstreams import name_cache
from relay.supervisor.upstreams import resolver as resolving
from relay.supervisor.upstreams.name_cache import Answer, NameCache
from relay.supervisor.upstreams.resolver import Resolver
from tests.supervisor.upstreams.name_stage import HUB, ONE, PRIVATE, SIX, TWO, Log
from tests.support.name_server import NameServer


class Heard:
    """What a service has told."""

    def __init__(self) -> None:
        self._told: asyncio.Queue[tuple[str, Answer]] = asyncio.Queue()

    def __call__(self, name: str, answer: Answer) -> None:
        self._told.put_nowait((name, answer))

    async def next(self, name: str = HUB) -> Answer:
        told, answer = await asyncio.wait_for(self._told.get(), 10)
        assert told == name
        return answer

    @property
    def nothing(self) -> bool:
        return self._told.empty()


@pytest.fixture
def server() -> Iterator[NameServer]:
    made = NameServer()
    yield made
    made.close()


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refresh need not wait for its second; nothing but a refresh happens within the time of a test."""
    monkeypatch.setattr(name_cache, "MIN_INTERVAL", 0.0)


Serve = Callable[..., NameCache]


@pytest.fixture
async def serve(server: NameServer, heard: Heard, log: Log, tmp_path: Path) -> AsyncIterator[Serve]:
    """Starts a name cache that asks the name server; it ends with the test."""
    tasks: list[asyncio.Task[None]] = []

    def start(*wanted: str, min_ttl: float = 60.0, max_ttl: float = 300.0, hold: float = 3600.0) -> NameCache:
        service = NameCache(
            Resolver([server.address], tmp_path / "hosts"),
            wanted or [HUB],
            min_ttl=min_ttl,
            max_ttl=max_ttl,
            hold=hold,
            clock=time.monotonic,
            changed=heard,
            log=log,
        )
        tasks.append(asyncio.create_task(service.run()))
        return service

    yield start
    for task in tasks:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def asked(server: NameServer, name: str, kind: str, times: int) -> None:
    await asyncio.to_thread(server.wait_for, name, kind, times)


@pytest.mark.parametrize(
    ("v4", "v6", "expected"),
    [([ONE], [SIX], (ONE, SIX)), ([ONE], [], (ONE,)), ([], [SIX], (SIX,))],
    ids=["both", "A only", "AAAA only"],
)
async def test_addresses_ipv4_first(
    server: NameServer, serve: Serve, heard: Heard, v4: list[str], v6: list[str], expected: tuple[str, ...]
) -> None:
    for kind, values in (("A", v4), ("AAAA", v6)):
        if values:
            server.zone[HUB, kind] = (60, values)
    service = serve()
    assert service.answer(HUB) is None
    assert service.answer("another.example") is None
    assert await heard.next() == Answer(expected, "")
    assert service.answer(HUB) == Answer(expected, "")


async def test_an_alias_that_leads_elsewhere_is_followed_when_its_own_time_is_over(
    server: NameServer, serve: Serve, heard: Heard, log: Log
) -> None:
    """In real time, without any refresh: the alias lives for a second, the address behind it for an hour."""
    server.zone[HUB, "CNAME"] = (1, [PRIVATE])
    server.zone[PRIVATE, "A"] = (3600, [ONE])
    server.zone["elsewhere.example", "A"] = (3600, [TWO])
    serve(min_ttl=0.0)
    assert await heard.next() == Answer((ONE,))
    server.zone[HUB, "CNAME"] = (3600, ["elsewhere.example"])
    assert await heard.next() == Answer((TWO,))
    assert log.lines == [("info", "addresses changed", {"name": HUB, "old": [ONE], "new": [TWO]})]


@pytest.mark.usefixtures("soon")
async def test_while_the_server_takes_its_time_the_old_answer_is_served(
    server: NameServer, serve: Serve, heard: Heard
) -> None:
    server.zone[HUB, "A"] = (60, [ONE])
    service = serve()
    await heard.next()
    server.zone[HUB, "A"] = (60, [TWO])
    server.withheld.add((HUB, "A"))
    service.refresh(HUB)
    await asked(server, HUB, "A", 2)
    assert service.answer(HUB) == Answer((ONE,))
    assert heard.nothing
    server.release()
    assert await heard.next() == Answer((TWO,))


def _silent(server: NameServer) -> None:
    server.silent |= {(HUB, "A"), (HUB, "AAAA")}


def _empty(server: NameServer) -> None:
    server.zone.clear()
    server.zone[HUB, "TXT"] = (60, ["no address"])


def _rcode(rcode: dns.rcode.Rcode) -> Callable[[NameServer], None]:
    def fail(server: NameServer) -> None:
        server.zone[HUB, "A"] = server.zone[HUB, "AAAA"] = rcode

    return fail


FAILURES = pytest.mark.parametrize(
    ("fail", "reason"),
    [
        pytest.param(_rcode(dns.rcode.SERVFAIL), "SERVFAIL", id="SERVFAIL"),
        pytest.param(_rcode(dns.rcode.REFUSED), "REFUSED", id="REFUSED"),
        pytest.param(lambda server: server.zone.clear(), "does not exist", id="NXDOMAIN"),
        pytest.param(_empty, "no addresses", id="empty"),
        pytest.param(_silent, "no answer", id="silent"),
    ],
)


@FAILURES
async def test_a_name_that_fails_from_the_start(
    server: NameServer,
    serve: Serve,
    heard: Heard,
    log: Log,
    monkeypatch: pytest.MonkeyPatch,
    fail: Callable[[NameServer], None],
    reason: str,
) -> None:
    monkeypatch.setattr(resolving, "LIFETIME", 0.3)
    fail(server)
    service = serve()
    answer = await heard.next()
    assert answer.addresses == ()
    assert reason in answer.error
    assert service.answer(HUB) == answer
    assert log.lines == [("warning", "cannot resolve", {"name": HUB, "error": answer.error})]


@FAILURES
@pytest.mark.usefixtures("soon")
async def test_the_last_good_answer_is_held_whatever_the_failure(
    server: NameServer,
    serve: Serve,
    heard: Heard,
    log: Log,
    monkeypatch: pytest.MonkeyPatch,
    fail: Callable[[NameServer], None],
    reason: str,
) -> None:
    monkeypatch.setattr(resolving, "LIFETIME", 0.3)
    server.zone[HUB, "A"] = (60, [ONE])
    service = serve()
    await heard.next()
    fail(server)
    service.refresh(HUB)
    await asyncio.wait_for(log.said.wait(), 10)
    assert service.answer(HUB) == Answer((ONE,))
    assert heard.nothing
    ((level, event, fields),) = log.lines
    assert level == "warning"
    assert event.startswith("cannot resolve; serving the last good answer for 36")
    assert event.endswith(" s more")
    assert reason in fields["error"]
    assert fields["addresses"] == [ONE]
    server.silent.clear()
    server.zone.clear()
    server.zone[HUB, "A"] = (60, [TWO])
    service.refresh(HUB)
    assert await heard.next() == Answer((TWO,))
    assert log.events()[1:] == ["resolves again", "addresses changed"]


async def test_a_port_where_nobody_listens(
    server: NameServer, heard: Heard, log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolving, "LIFETIME", 0.3)
    gone = NameServer()
    gone.close()
    resolver = Resolver([gone.address], tmp_path / "hosts")
    service = NameCache(
        resolver, [HUB], min_ttl=5, max_ttl=300, hold=3600, clock=time.monotonic, changed=heard, log=log
    )
    task = asyncio.create_task(service.run())
    assert f"127.0.0.1:{gone.address[1]}" in (await heard.next()).error
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.usefixtures("soon")
async def test_another_order_is_no_change(server: NameServer, serve: Serve, heard: Heard, log: Log) -> None:
    addresses = [f"192.0.2.{n}" for n in range(1, 6)]
    server.zone[HUB, "A"] = (60, addresses)  # the server shuffles them
    service = serve()
    first = await heard.next()
    for round_ in range(2, 12):
        service.refresh(HUB)
        await asked(server, HUB, "AAAA", round_)
    server.zone[HUB, "A"] = (60, [*addresses, "192.0.2.6"])
    service.refresh(HUB)
    last = await heard.next()
    assert set(last.addresses) - set(first.addresses) == {"192.0.2.6"}, "nothing was told in between"
    assert log.events() == ["addresses changed"]


@pytest.mark.usefixtures("soon")
async def test_a_family_that_the_server_fails_to_answer_for_is_held(
    server: NameServer, serve: Serve, heard: Heard, log: Log
) -> None:
    server.zone[HUB, "A"] = (60, [ONE])
    server.zone[HUB, "AAAA"] = (60, [SIX])
    service = serve()
    assert await heard.next() == Answer((ONE, SIX))
    server.zone[HUB, "A"] = (60, [TWO])
    server.zone[HUB, "AAAA"] = dns.rcode.SERVFAIL
    service.refresh(HUB)
    assert await heard.next() == Answer((TWO, SIX))
    del server.zone[HUB, "AAAA"]  # that there are none is an answer
    service.refresh(HUB)
    assert await heard.next() == Answer((TWO,))


async def test_the_hosts_file_and_the_search_list(
    server: NameServer, heard: Heard, log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conf, hosts = tmp_path / "resolv.conf", tmp_path / "hosts"
    conf.write_text("search plant.example\nnameserver 127.0.0.1\noptions timeout:0\n")  # the time is our own affair
    hosts.write_text(f"{TWO} other\n")
    monkeypatch.setattr(resolving, "RESOLV_CONF", conf)
    monkeypatch.setattr(resolving, "DNS_PORT", server.address[1])
    server.zone["hub.plant.example", "A"] = (60, [ONE])
    resolver = Resolver([], hosts)
    service = NameCache(
        resolver, ["hub", "other"], min_ttl=5, max_ttl=300, hold=3600, clock=time.monotonic, changed=heard, log=log
    )
    task = asyncio.create_task(service.run())
    assert await heard.next("other") == Answer((TWO,))
    assert await heard.next("hub") == Answer((ONE,))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
