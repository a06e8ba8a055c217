"""Answers from the search list, in virtual time: what may take the place of an answer that is served."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from relay.supervisor.upstreams.name_cache import Answer
from relay.supervisor.upstreams.resolver import Lookup
from tests.supervisor.upstreams.name_stage import HUB, ONE, SIX, TWO, Stage, Step, staged
from tests.support.virtual_time import run

FIRST, SECOND = f"{HUB}.corp.test", f"{HUB}.more.test"


def below(source: str, *addresses: str, failed: tuple[str, ...] = (), unanswered: str = "") -> Step:
    return 0.0, Lookup(addresses, "", 100.0, unanswered, source, failed)


@staged
async def test_a_later_name_does_not_take_the_place_of_one_that_fails_until_its_hold_is_over() -> None:
    stage = Stage([below(FIRST, ONE), below(SECOND, TWO, failed=(FIRST,))], hold=300.0)
    await stage.until(390)
    assert stage.service.answer(HUB) == Answer((ONE,))
    (line,) = stage.log.lines
    assert line[2]["error"] == f"{FIRST} fails, and {SECOND} does not take its place"
    await stage.until(450)
    assert stage.service.answer(HUB) == Answer((TWO,))
    assert stage.answers()[0] == Answer((ONE,))
    await stage.end()


@staged
async def test_a_later_name_takes_the_place_of_one_that_says_it_is_gone() -> None:
    stage = Stage([below(FIRST, ONE), below(SECOND, TWO)])
    await stage.until(110)
    assert stage.answers() == [Answer((ONE,)), Answer((TWO,))]
    await stage.end()


@staged
async def test_an_earlier_name_that_is_back_takes_the_place_of_a_later_one() -> None:
    stage = Stage([below(SECOND, TWO, failed=(FIRST,)), below(FIRST, ONE)])
    await stage.until(110)
    assert stage.answers() == [Answer((TWO,)), Answer((ONE,))]
    await stage.end()


@staged
async def test_a_family_is_not_held_from_another_name() -> None:
    stage = Stage([below(FIRST, ONE, SIX), below(SECOND, TWO, unanswered="AAAA")])
    await stage.until(110)
    assert stage.answers() == [Answer((ONE, SIX)), Answer((TWO,))]
    await stage.end()


@pytest.mark.parametrize(("source", "kept"), [(FIRST, False), (HUB, True), ("", True)])
def test_a_name_that_is_complete_since_a_reload_does_not_keep_what_the_search_list_gave(
    source: str, kept: bool
) -> None:
    async def main() -> Any:
        stage = Stage([below(source, ONE)])
        await stage.until(1)
        await stage.end()
        after = Stage([(1000.0, Lookup((), "SERVFAIL"))], stage.service, complete=(HUB,))
        await asyncio.sleep(1)
        assert after.service.answer(HUB) == (Answer((ONE,)) if kept else None)
        await after.end()

    run(main())


@staged
async def test_addresses_that_are_never_dialled_are_said_once_and_an_answer_of_nothing_else_is_held_against() -> None:
    bad = (("0.0.0.0", "the unspecified address"),)
    sunk = Lookup((), "hub is 0.0.0.0", 100.0, "", HUB, (), bad)
    stage = Stage([below(HUB, ONE), (0.0, Lookup((ONE,), "", 100.0, "", HUB, (), bad)), (0.0, sunk)])
    await stage.until(200)
    assert stage.answers() == [Answer((ONE,))]
    refused, held = stage.log.lines
    assert refused[1:] == ("address refused", {"name": HUB, "address": bad[0][0], "reason": bad[0][1]})
    assert held[2]["error"] == "hub is 0.0.0.0"
    assert stage.service.refused(HUB) == bad
    await stage.end()
