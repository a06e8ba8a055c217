"""How long an answer is served, and what is told of it; where hours pass, in virtual time."""

from __future__ import annotations

import pytest

from relay.supervisor.upstreams.name_cache import Answer
from tests.supervisor.upstreams.name_stage import HUB, ONE, SIX, TWO, Stage, bad, good, staged
from tests.support.virtual_time import run


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
async def test_a_name_that_need_not_resolve_is_not_told_of_before_it_does() -> None:
    stage = Stage([bad("NXDOMAIN"), bad("NXDOMAIN"), good(ONE), bad("NXDOMAIN")], hold=0.0, optional=(HUB,))
    await stage.until(50)
    assert stage.answers() == [Answer((), "NXDOMAIN"), Answer((ONE,))]
    assert stage.log.lines == []
    await stage.until(200)
    assert stage.answers()[2:] == [Answer((), "NXDOMAIN")]
    assert [event for event in stage.log.events() if event == "cannot resolve"] == ["cannot resolve"]
    await stage.end()
