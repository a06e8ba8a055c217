"""Turns on a real event loop: in order, as they were reserved, and none is lost to one that has gone."""

from __future__ import annotations

import asyncio

from relay.core.rates import NANO, SINGLES, Late, Rate, RatePlan, Rates
from relay.worker.connection.dial_queue import DialQueue

PLAN = RatePlan(dial=Rate(1000.0, 1.0), queue=20, queue_seconds=60.0)


class Line:
    """A dial queue, and the connections that it has called."""

    def __init__(self, plan: RatePlan = PLAN) -> None:
        loop = asyncio.get_running_loop()
        self.called: list[str] = []
        self.changed = asyncio.Event()
        self.plan = plan
        self.rates = Rates(plan, [0] * SINGLES, [], [], None, self.clock)
        self.dial_queue = DialQueue(self.rates.dial, loop, self.clock, self.ready)

    @staticmethod
    def clock() -> int:
        return int(asyncio.get_running_loop().time() * NANO)

    def ready(self, name: str) -> None:
        self.called.append(name)
        self.changed.set()

    async def wait(self, count: int) -> None:
        async with asyncio.timeout(30):
            while len(self.called) < count:
                self.changed.clear()
                await self.changed.wait()


async def test_who_waits_is_called_in_order() -> None:
    line = Line()
    begun = line.clock()
    assert line.dial_queue.enter("first") is True
    names = [f"{number}" for number in range(15)]
    assert [line.dial_queue.enter(name) for name in names] == [False] * 15
    assert len(line.dial_queue) == 15
    await line.wait(15)
    assert line.called == names
    assert line.clock() - begun >= 15 * PLAN.dial.interval, "no sooner than the rate allows"
    assert len(line.dial_queue) == 0


async def test_those_behind_move_up_when_one_leaves() -> None:
    slow = RatePlan(dial=Rate(10.0, 1.0), queue=20, queue_seconds=60.0)
    line = Line(slow)
    assert line.dial_queue.enter("first") is True
    for name in ("a", "b", "c"):
        assert line.dial_queue.enter(name) is False
    line.dial_queue.leave("a")
    line.dial_queue.leave("a")
    begun = line.clock()
    await line.wait(2)
    assert line.called == ["b", "c"]
    assert line.clock() - begun < 3 * slow.dial.interval, "the third turn was not waited for"


async def test_a_turn_that_is_left_over_is_for_the_next_to_come() -> None:
    line = Line(RatePlan(dial=Rate(5.0, 1.0), queue=1, queue_seconds=60.0))
    assert line.dial_queue.enter("first") is True
    assert line.dial_queue.enter("a") is False
    assert line.dial_queue.enter("b") == Late(full=True)
    line.dial_queue.leave("a")
    assert line.dial_queue.enter("c") is False, "no turn has to be reserved for it"
    await line.wait(1)
    assert line.called == ["c"]
