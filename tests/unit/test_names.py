"""Names kept fresh: against a real name server on loopback, and, where hours pass, against scripts in virtual time."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import dns.rcode
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay import names, resolve
from relay.names import Answer, NameService
from relay.resolve import Lookup, Resolver
from tests.unit.name_server import NameServer
from tests.unit.virtual_time import BEGIN, run

HUB = "myhub.azure-devices.example"
PRIVATE = "myhub.privatelink.azure-devices.example"
ONE, TWO, SIX = "192.0.2.1", "192.0.2.2", "2001:db8::1"
NEVER = 1e9  # seconds


class Log:
    """The service log: what was said, in order."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str, dict[str, Any]]] = []
        self.said = asyncio.Event()

    def info(self, event: str, **fields: Any) -> None:
        self._say("info", event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        self._say("warning", event, fields)

    def error(self, event: str, **fields: Any) -> None:
        self._say("error", event, fields)

    def _say(self, level: str, event: str, fields: dict[str, Any]) -> None:
        self.lines.append((level, event, fields))
        self.said.set()

    def events(self) -> list[str]:
        return [event for _level, event, _fields in self.lines]


# --- a real name server ----------------------------------------------------------------------------------------------


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
    monkeypatch.setattr(names, "HURRY", 0.0)


Serve = Callable[..., NameService]


@pytest.fixture
async def serve(server: NameServer, heard: Heard, log: Log, tmp_path: Path) -> AsyncIterator[Serve]:
    """Starts a service that asks the name server; it ends with the test."""
    tasks: list[asyncio.Task[None]] = []

    def start(*wanted: str, min_ttl: float = 60.0, max_ttl: float = 300.0, hold: float = 3600.0) -> NameService:
        service = NameService(
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
    monkeypatch.setattr(resolve, "LIFETIME", 0.3)
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
    monkeypatch.setattr(resolve, "LIFETIME", 0.3)
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
    monkeypatch.setattr(resolve, "LIFETIME", 0.3)
    gone = NameServer()
    gone.close()
    resolver = Resolver([gone.address], tmp_path / "hosts")
    service = NameService(
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
    original = resolve._system_resolver

    def system_resolver() -> Any:
        made = original()
        assert made is not None
        made.port = server.address[1]
        return made

    monkeypatch.setattr(resolve, "RESOLV_CONF", conf)
    monkeypatch.setattr(resolve, "_system_resolver", system_resolver)
    server.zone["hub.plant.example", "A"] = (60, [ONE])
    resolver = Resolver([], hosts)
    service = NameService(
        resolver, ["hub", "other"], min_ttl=5, max_ttl=300, hold=3600, clock=time.monotonic, changed=heard, log=log
    )
    task = asyncio.create_task(service.run())
    assert await heard.next("other") == Answer((TWO,))
    assert await heard.next("hub") == Answer((ONE,))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


# --- virtual time ----------------------------------------------------------------------------------------------------

Step = tuple[float, Lookup | Exception]  # seconds that a look-up takes, and what comes of it


def good(*addresses: str, ttl: float = 100.0, unanswered: str = "", takes: float = 0.0) -> Step:
    return takes, Lookup(addresses, "", ttl, unanswered)


def bad(error: str = "SERVFAIL", takes: float = 0.0) -> Step:
    return takes, Lookup((), error)


class Script(Resolver):
    """Look-ups of each name as written down; the last step is repeated for ever. Notes when they begin and end."""

    def __init__(self, steps: dict[str, list[Step]]) -> None:
        super().__init__([("127.0.0.1", 9)])
        self._steps = {name: iter(row) for name, row in steps.items()}
        self._last = {name: row[-1] for name, row in steps.items()}
        self.begun: dict[str, list[float]] = {name: [] for name in steps}
        self.results: dict[str, list[tuple[float, Lookup | Exception]]] = {name: [] for name in steps}
        self.under_way: set[str] = set()

    async def resolve(self, host: str) -> Lookup:
        loop = asyncio.get_running_loop()
        assert host not in self.under_way, "two look-ups of one name at a time"
        self.under_way.add(host)
        self.begun[host].append(loop.time() - BEGIN)
        try:
            takes, result = next(self._steps[host], self._last[host])
            await asyncio.sleep(takes)
        finally:
            self.under_way.discard(host)
        self.results[host].append((loop.time() - BEGIN, result))
        if isinstance(result, Exception):
            raise result
        return result


class Stage:
    """A service in virtual time, and all that is seen of it. Times are seconds since its begin."""

    def __init__(self, steps: dict[str, list[Step]] | list[Step], before: NameService | None = None, **options: float):
        self.script = Script(steps if isinstance(steps, dict) else {HUB: steps})
        self.log = Log()
        self.told: list[tuple[float, str, Answer]] = []
        loop = asyncio.get_running_loop()
        self.service = NameService(
            self.script,
            self.script.begun,
            **{"min_ttl": 5.0, "max_ttl": 300.0, "hold": 3600.0, **options},
            clock=loop.time,
            changed=lambda name, answer: self.told.append((loop.time() - BEGIN, name, answer)),
            log=self.log,
            before=before,
        )
        self._task = loop.create_task(self.service.run())

    async def until(self, moment: float) -> None:
        await asyncio.sleep(moment - (asyncio.get_running_loop().time() - BEGIN))

    async def end(self) -> None:
        self._task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await self._task

    @property
    def begun(self) -> list[float]:
        return self.script.begun[HUB]

    def answers(self) -> list[Answer]:
        return [answer for _moment, _name, answer in self.told]


def staged(test: Callable[[], Any]) -> Callable[[], None]:
    def in_virtual_time() -> None:
        run(test())

    in_virtual_time.__name__, in_virtual_time.__doc__ = test.__name__, test.__doc__
    return in_virtual_time


@pytest.mark.parametrize(
    ("ttl", "counted"), [(0, 5.0), (1, 5.0), (60, 60.0), (300, 300.0), (3600, 300.0), (2**31 - 1, 300.0)]
)
def test_an_answer_is_asked_for_again_ahead_of_its_end(ttl: int, counted: float) -> None:
    async def main() -> None:
        stage = Stage([good(ONE, ttl=ttl)])
        await stage.until(20 * counted)
        gaps = [later - earlier for earlier, later in zip(stage.begun, stage.begun[1:], strict=False)]
        assert len(gaps) >= 20
        assert all(0.7 * counted - 0.001 <= gap <= 0.8 * counted + 0.001 for gap in gaps)
        assert len({round(gap, 6) for gap in gaps}) > len(gaps) / 2, "not in step"
        assert stage.told == [(0.0, HUB, Answer((ONE,)))]
        assert stage.log.lines == []
        await stage.end()

    run(main())


@staged
async def test_no_more_than_one_look_up_a_second_without_any_ttl() -> None:
    stage = Stage([good(ONE, ttl=0)], min_ttl=0.0)
    await stage.until(10.5)
    assert stage.begun == pytest.approx([float(n) for n in range(11)], abs=0.001)
    await stage.end()


@staged
async def test_an_answer_is_served_beyond_its_time_while_nothing_has_failed() -> None:
    stage = Stage([good(ONE, ttl=10), good(TWO, takes=1000)], hold=0.0)
    await stage.until(900)
    assert stage.service.answer(HUB) == Answer((ONE,))
    await stage.until(1100)
    assert stage.answers() == [Answer((ONE,)), Answer((TWO,))]
    await stage.end()


@staged
async def test_the_last_good_answer_is_held_from_the_end_of_its_ttl() -> None:
    stage = Stage([good(ONE), bad("SERVFAIL")], hold=50.0)
    await stage.until(149)
    assert stage.service.answer(HUB) == Answer((ONE,))
    await stage.until(151)
    (_, first), (moment, last) = [(moment, answer) for moment, _, answer in stage.told]
    assert first == Answer((ONE,))
    assert moment == pytest.approx(150)
    assert last == Answer((), "SERVFAIL") == stage.service.answer(HUB)
    held, failed = stage.log.lines
    left = 150 - stage.begun[1]
    assert held[1:] == (
        f"cannot resolve; serving the last good answer for {left:.0f} s more",
        {"name": HUB, "error": "SERVFAIL", "addresses": [ONE]},
    )
    assert failed == ("warning", "cannot resolve", {"name": HUB, "error": "SERVFAIL"})
    await stage.end()


@staged
async def test_the_hold_ends_also_while_a_look_up_is_under_way() -> None:
    stage = Stage([good(ONE), bad("SERVFAIL"), good(TWO, takes=1000)], hold=50.0)
    await stage.until(160)
    assert stage.script.under_way
    assert stage.told[-1][0] == pytest.approx(150)
    assert stage.answers() == [Answer((ONE,)), Answer((), "SERVFAIL")]
    await stage.until(1200)
    assert stage.answers()[2:] == [Answer((TWO,))]
    await stage.end()


@staged
async def test_without_hold_an_answer_lasts_until_the_end_of_its_ttl() -> None:
    stage = Stage([good(ONE), bad("SERVFAIL")], hold=0.0)
    await stage.until(99)
    assert stage.service.answer(HUB) == Answer((ONE,))
    await stage.until(101)
    assert stage.service.answer(HUB) == Answer((), "SERVFAIL")
    await stage.end()


@staged
async def test_a_good_answer_ends_the_hold_of_the_one_before() -> None:
    stage = Stage([good(ONE), bad(), good(ONE, ttl=300), good(ONE, ttl=300, takes=1000)], hold=50.0)
    await stage.until(900)
    assert stage.answers() == [Answer((ONE,))]
    assert stage.log.events()[1:] == ["resolves again"]
    await stage.end()


@staged
async def test_failures_are_followed_by_longer_and_longer_pauses_and_by_one_line() -> None:
    stage = Stage([bad(f"error {n}") for n in range(20)])
    await stage.until(300)
    gaps = [later - earlier for earlier, later in zip(stage.begun, stage.begun[1:], strict=False)]
    for gap, most in zip(gaps, [1, 2, 4, 8, 16] + [30] * len(gaps), strict=False):
        assert max(1, 0.8 * most) - 0.001 <= gap <= most + 0.001
    assert len(gaps) >= 12
    assert stage.log.lines == [("warning", "cannot resolve", {"name": HUB, "error": "error 0"})]
    assert stage.told == [(0.0, HUB, Answer((), "error 0"))], "another reason is no change"
    answer = stage.service.answer(HUB)
    assert answer is not None
    assert answer.error == f"error {len(gaps)}", "but the latest is known"
    await stage.end()


@staged
async def test_pauses_begin_with_the_shortest_again_after_a_good_answer() -> None:
    stage = Stage([*[bad()] * 6, good(ONE, ttl=10), bad()])
    await stage.until(100)
    after = stage.begun[7:]
    assert after[1] - after[0] == pytest.approx(1)
    await stage.end()


@staged
async def test_each_change_of_state_is_logged_once() -> None:
    stage = Stage([bad("a"), bad("b"), good(ONE), good(ONE), bad("c"), bad("d"), good(TWO), good(ONE, TWO)], hold=100.0)
    await stage.until(1000)
    assert [(event.partition(" for ")[0], fields.get("error")) for _, event, fields in stage.log.lines] == [
        ("cannot resolve", "a"),
        ("resolves again", None),
        ("cannot resolve; serving the last good answer", "c"),
        ("resolves again", None),
        ("addresses changed", None),
        ("addresses changed", None),
    ]
    assert stage.log.lines[1][2] == {"name": HUB, "addresses": [ONE]}
    assert stage.log.lines[-1][2] == {"name": HUB, "old": [TWO], "new": [ONE, TWO]}
    await stage.end()


@staged
async def test_the_addresses_served_keep_the_order_that_was_told_of() -> None:
    stage = Stage([good(ONE, TWO, SIX), good(TWO, ONE, SIX)])
    await stage.until(1000)
    assert len(stage.begun) > 5
    assert stage.answers() == [Answer((ONE, TWO, SIX))]
    assert stage.service.answer(HUB) == Answer((ONE, TWO, SIX))
    assert stage.log.lines == []
    await stage.end()


@staged
async def test_a_family_that_fails_is_held_no_longer_than_a_whole_answer() -> None:
    stage = Stage([good(ONE, SIX), good(ONE, unanswered="AAAA")], hold=50.0)
    await stage.until(149)
    assert stage.answers() == [Answer((ONE, SIX))]
    gaps = [later - earlier for earlier, later in zip(stage.begun[1:], stage.begun[2:], strict=False)]
    assert max(gaps) <= 4.001, "it is asked for at the least TTL's pace"
    await stage.until(160)
    assert stage.answers()[1:] == [Answer((ONE,))]
    assert stage.told[-1][0] == pytest.approx(152, abs=2.1)
    await stage.end()


@staged
async def test_ages() -> None:
    stage = Stage({"good": [good(ONE), bad()], "slow": [good(ONE, takes=7)], "never": [bad()]})
    await stage.until(5)
    assert stage.service.ages() == pytest.approx({"good": 5, "slow": 5, "never": 5})
    await stage.until(10)
    assert stage.service.ages() == pytest.approx({"good": 10, "slow": 3, "never": 10})
    await stage.until(1000)
    assert stage.service.ages()["good"] == pytest.approx(1000)
    assert stage.service.ages()["slow"] <= 88
    await stage.end()


@staged
async def test_a_refresh_is_a_look_up_at_once() -> None:
    stage = Stage([good(ONE), good(TWO)])
    await stage.until(30)
    stage.service.refresh(HUB)
    stage.service.refresh("another.example")
    await stage.until(30.001)
    assert stage.begun == pytest.approx([0, 30])
    assert stage.answers() == [Answer((ONE,)), Answer((TWO,))]
    await stage.end()


@staged
async def test_a_refresh_does_not_wait_for_the_pause_after_a_failure() -> None:
    stage = Stage([bad()])
    await stage.until(100)
    begun = len(stage.begun)
    moment = max(100, stage.begun[-1] + 2)  # within the pause, which is of 12 seconds at least by now
    await stage.until(moment)
    stage.service.refresh(HUB)
    await stage.until(moment + 0.001)
    assert stage.begun[begun:] == pytest.approx([moment])
    await stage.end()


@staged
async def test_any_number_of_refreshes_are_one_look_up_a_second() -> None:
    stage = Stage([good(ONE)])
    for moment in range(1, 1000):
        await stage.until(moment / 100)
        for _ in range(10):
            stage.service.refresh(HUB)
    await stage.until(60)
    assert stage.begun == pytest.approx([float(n) for n in range(11)])
    await stage.end()


@staged
async def test_refreshes_during_a_look_up_are_one_more_after_it() -> None:
    stage = Stage([good(ONE), good(ONE, takes=5), good(TWO)])
    await stage.until(10)
    stage.service.refresh(HUB)
    for moment in (11, 12, 13):
        await stage.until(moment)
        stage.service.refresh(HUB)
    await stage.until(50)
    assert stage.begun == pytest.approx([0, 10, 15])
    assert stage.answers() == [Answer((ONE,)), Answer((TWO,))]
    await stage.end()


@staged
async def test_a_slow_or_failing_name_is_no_matter_of_another() -> None:
    stage = Stage({"slow": [good(ONE, takes=NEVER)], "bad": [bad()], "good": [good(ONE), good(TWO)]})
    await stage.until(90)
    told = [(name, answer.addresses) for _, name, answer in stage.told]
    assert told == [("bad", ()), ("good", (ONE,)), ("good", (TWO,))]
    assert stage.service.answer("slow") is None
    await stage.end()


@staged
async def test_a_defect_in_the_resolver_is_a_failure_like_any_other() -> None:
    stage = Stage([good(ONE), (0.0, RuntimeError("a bug")), good(TWO)])
    await stage.until(90)
    assert stage.answers() == [Answer((ONE,)), Answer((TWO,))]
    assert stage.log.lines[0] == ("error", "resolver failed", {"name": HUB, "exc_info": True})
    assert stage.log.lines[1][2]["error"] == "a bug"
    await stage.end()


@staged
async def test_a_defect_in_what_is_told_is_no_end() -> None:
    stage = Stage([good(ONE), good(TWO), good(ONE)])
    failures: list[str] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _loop, context: failures.append(str(context["exception"])))

    def broken(_name: str, answer: Answer) -> None:
        raise RuntimeError(answer.addresses[0])

    stage.service._changed = broken
    await stage.until(200)
    assert failures == [ONE, TWO, ONE]
    await stage.end()


@staged
async def test_the_end_is_the_end() -> None:
    stage = Stage({"under way": [good(ONE), good(TWO, takes=50)], "held": [good(ONE), bad()], "good": [good(ONE)]})
    await stage.until(90)
    assert stage.script.under_way == {"under way"}
    begun = {name: len(row) for name, row in stage.script.begun.items()}
    told = len(stage.told)
    await stage.end()
    assert not stage.script.under_way
    await stage.until(10000)
    assert {name: len(row) for name, row in stage.script.begun.items()} == begun
    assert len(stage.told) == told
    assert len(asyncio.all_tasks()) == 1


@staged
async def test_a_service_without_names_runs_until_it_is_cancelled() -> None:
    stage = Stage({})
    await stage.until(10)
    assert not stage._task.done()
    assert stage.service.ages() == {}
    await stage.end()


@staged
async def test_a_service_takes_over_what_the_one_before_it_knew() -> None:
    """A reload while DNS fails must not lose what is held."""
    first = Stage({"kept": [good(ONE), bad()], "gone": [good(ONE)]})
    await first.until(90)
    await first.end()
    second = Stage({"kept": [bad()], "new": [good(TWO)]}, before=first.service, hold=50.0)
    assert second.service.answer("kept") == Answer((ONE,))
    assert second.service.answer("gone") is None
    assert second.service.ages() == pytest.approx({"kept": 90, "new": 0})
    await second.until(149)
    assert second.service.answer("kept") == Answer((ONE,))
    await second.until(151)
    moments = [moment for moment, _, _ in second.told]
    assert moments == pytest.approx([90, 150])
    assert [(name, answer) for _, name, answer in second.told] == [
        ("new", Answer((TWO,))),
        ("kept", Answer((), "SERVFAIL")),
    ]
    await second.end()


@staged
async def test_a_failure_that_was_taken_over_is_no_news() -> None:
    first = Stage([bad()])
    await first.until(10)
    await first.end()
    second = Stage([bad("REFUSED"), bad("REFUSED"), good(ONE)], before=first.service)
    assert second.service.answer(HUB) == Answer((), "SERVFAIL")
    await second.until(10.001)
    assert second.service.answer(HUB) == Answer((), "REFUSED")
    assert second.told == []
    assert second.log.lines == []
    await second.until(20)
    assert second.answers() == [Answer((ONE,))]
    third = Stage([good(ONE)], before=first.service)
    await third.until(21)
    assert third.log.events() == second.log.events() == ["resolves again"]
    await second.end()
    await third.end()


RESULTS = st.one_of(
    st.builds(
        good,
        *[st.sampled_from([ONE, TWO, SIX])] * 2,
        ttl=st.sampled_from([0.0, 3.0, 20.0, 100.0, 2.0**31]),
        takes=st.floats(0, 8),
    ),
    st.builds(bad, takes=st.floats(0, 8)),
    st.tuples(st.floats(0, 8), st.just(RuntimeError("a bug"))),
)
MIN_TTL, MAX_TTL, END = 5.0, 60.0, 400.0
CLOSE = 1e-3


@settings(deadline=None)
@given(
    st.lists(RESULTS, min_size=1, max_size=30), st.lists(st.floats(0, END), max_size=30), st.sampled_from([0, 7, 70])
)
def test_whatever_comes_what_is_served_follows_from_the_rules(
    steps: list[Step], refreshes: list[float], hold: float
) -> None:
    refreshes.sort()

    async def main() -> Stage:
        stage = Stage(steps, min_ttl=MIN_TTL, max_ttl=MAX_TTL, hold=hold)
        for moment in refreshes:
            await stage.until(moment)
            stage.service.refresh(HUB)
        await stage.until(END)
        answer = stage.service.answer(HUB)
        assert (answer and answer.addresses) == (stage.told[-1][2].addresses if stage.told else None)
        await stage.end()
        return stage

    stage = run(main())
    results = stage.script.results[HUB]
    expected = list(_served(results, hold))
    assert [set(answer.addresses) for _, _, answer in stage.told] == [addresses for _, addresses in expected]
    assert [moment for moment, _, _ in stage.told] == pytest.approx([moment for moment, _ in expected], abs=CLOSE)
    _check_pace(stage.begun, results, refreshes)


def _served(results: list[tuple[float, Lookup | Exception]], hold: float) -> Iterator[tuple[float, set[str]]]:
    """From the look-ups, when they ended and how: what has to be served from when on; an empty set is a failure."""
    served: set[str] | None = None
    held_until = 0.0
    for n, (end, result) in enumerate(results):
        following = results[n + 1][0] if n + 1 < len(results) else END
        moment, addresses = end, set[str]()
        if isinstance(result, Lookup) and result.addresses:
            held_until = end + _counted(result) + hold
            addresses = set(result.addresses)
        else:
            moment = max(end, held_until)
        if addresses != served and moment <= following:
            yield moment, addresses
            served = addresses


def _check_pace(begun: list[float], results: list[tuple[float, Lookup | Exception]], refreshes: list[float]) -> None:
    """Each look-up begins when the one before it asks for that, or when a refresh does, and no sooner."""
    failures = 0
    for first, second, (end, result) in zip(begun, begun[1:], results, strict=False):
        if isinstance(result, Lookup) and result.addresses:
            failures = 0
            pause, least = 0.8 * _counted(result), 0.7 * _counted(result)
        else:
            failures += 1
            pause = min(30, 2.0 ** (failures - 1))
            least = 0.8 * pause
        latest = max(first + 1, end + pause)
        # At the very moment of a begin it may be that look-up or the next one that a refresh asks for.
        may = [moment for moment in refreshes if first - CLOSE <= moment <= second + CLOSE]
        must = [moment for moment in may if first + CLOSE < moment]
        if must:
            latest = min(latest, max(must[0], end, first + 1))
        assert second <= latest + CLOSE
        assert second >= max(first + 1, end if may else end + least) - CLOSE


def _counted(result: Lookup) -> float:
    return min(max(result.ttl, MIN_TTL), MAX_TTL)
