"""When a name is asked for: one look-up at a time, at once if somebody wants it, and the rules as a whole."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.supervisor.upstreams.name_cache import Answer
from relay.supervisor.upstreams.resolver import Lookup
from tests.supervisor.upstreams.name_stage import HUB, NEVER, ONE, SIX, TWO, Stage, Step, bad, good, staged
from tests.support.virtual_time import run


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
async def test_a_defect_in_the_task_of_one_name_ends_neither_it_nor_the_others() -> None:
    stage = Stage({HUB: [good(ONE, ttl=10), good(TWO, ttl=10)], "other": [good(ONE, ttl=10), good(TWO, ttl=10)]})
    succeeded = stage.service._succeeded
    broken = True

    def fail(entry: Any, lookup: Any) -> float:
        if broken and entry.name == HUB:
            raise RuntimeError("a bug")
        return succeeded(entry, lookup)

    stage.service._succeeded = fail  # type: ignore[method-assign]  # no way leads there from outside
    await stage.until(40)
    assert stage.service.answer("other") == Answer((TWO,))
    assert stage.service.answer(HUB) is None
    broken = False
    await stage.until(100)
    assert stage.service.answer(HUB) == Answer((TWO,))
    assert ("error", "internal error", {"about": f"resolve {HUB}", "exc_info": True}) in stage.log.lines
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
