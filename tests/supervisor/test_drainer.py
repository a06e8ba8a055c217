"""How a drain is carried out: in whatever order it is told what, and whatever goes wrong in it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools

import pytest
import structlog

from relay.core.drain import Order, Phase
from relay.supervisor.drainer import TOLD_TO_END, Drainer
from relay.supervisor.instance import StartError
from tests.supervisor.azure.azure_rig import Log
from tests.support.observe import PATIENCE

OPERATORS = Order(0.0, 60.0, ends=False, reason="admin")
ANNOUNCED = Order(60.0, 60.0, ends=False, reason="admin")
EVENTS = Order(0.0, 60.0, ends=False, reason="scheduled event: Preempt", left=30.0, lasts=False)
LAST = Order(0.0, 60.0, ends=True, reason="SIGTERM")


class Workers:
    """Accept or not; `taken` stands for an address that somebody else has by now."""

    def __init__(self) -> None:
        self.accepting = True
        self.taken = False

    def drain(self, closed_at: float, over_at: float) -> None:
        assert closed_at <= over_at
        self.accepting = False

    def resume(self) -> None:
        if self.taken:
            raise StartError(["listeners.main.bind: taken"])
        self.accepting = True


def made() -> tuple[Drainer, Workers]:
    workers = Workers()
    return Drainer(workers, lambda: 1, lambda: None, lambda: None, Log()), workers


async def test_the_workers_are_as_the_state_says_in_every_order_of_orders() -> None:
    names = ["operator", "announced", "event", "SIGTERM", "undrain", "called off", "some time"]
    orders = {"operator": OPERATORS, "announced": ANNOUNCED, "event": EVENTS, "SIGTERM": LAST}
    for sequence in itertools.product(names, repeat=4):
        drainer, workers = made()
        for name in sequence:
            if name in orders:
                drainer.begin(orders[name])
            elif name == "undrain":
                problem = drainer.undrain()
                assert bool(problem) == drainer.state.draining, sequence
            elif name == "called off":
                drainer.call_off()
            else:
                await asyncio.sleep(0)
            assert workers.accepting == (drainer.state.phase in (Phase.SERVING, Phase.ANNOUNCING)), sequence
            assert not drainer.state.draining or name != "called off" or drainer.state.lasts, sequence
        drainer.hurry()  # stops its timer


@pytest.mark.parametrize("first", [OPERATORS, EVENTS], ids=["operator first", "event first"])
async def test_an_undrain_that_crosses_an_event_ends_only_the_operators_drain(first: Order) -> None:
    drainer, workers = made()
    for order in (first, EVENTS if first is OPERATORS else OPERATORS):
        drainer.begin(order)
    problem = drainer.undrain()
    assert problem.startswith("scheduled event: Preempt: this drain began meanwhile")
    assert (workers.accepting, drainer.state.reason) == (False, "scheduled event: Preempt")
    assert drainer.undrain() == ""
    assert workers.accepting


async def test_an_event_that_is_called_off_is_nothing_to_an_operators_drain_nor_to_its_undrain() -> None:
    drainer, workers = made()
    drainer.begin(EVENTS)
    drainer.begin(OPERATORS)
    drainer.call_off()
    assert not workers.accepting
    assert drainer.undrain() == ""
    assert workers.accepting


async def test_what_cannot_be_taken_back_changes_nothing() -> None:
    drainer, workers = made()
    drainer.begin(OPERATORS)
    workers.taken = True
    before = drainer.state
    with pytest.raises(StartError):
        drainer.undrain()
    assert (drainer.state, workers.accepting) == (before, False)
    workers.taken = False
    drainer.begin(LAST)
    assert drainer.undrain() == TOLD_TO_END
    drainer.hurry()


class Broken:
    """Workers that cannot be told."""

    def drain(self, closed_at: float, over_at: float) -> None:
        raise RuntimeError("a defect")

    def resume(self) -> None:
        raise AssertionError("nobody asks for it")


@pytest.mark.slow
@pytest.mark.parametrize("announce", [0.0, 0.2])
@pytest.mark.parametrize("broken", ["telling", "counting"])
async def test_a_defect_does_not_keep_a_drain_from_its_end(announce: float, broken: str) -> None:
    ended = asyncio.Event()
    asyncio.get_running_loop().set_exception_handler(lambda _loop, _context: None)
    looks = 0

    def active() -> int:
        nonlocal looks
        looks += 1
        if broken == "counting" and looks > 1:
            raise RuntimeError("a defect")
        return 1

    drainer = Drainer(Broken(), active, ended.set, lambda: None, structlog.get_logger())
    with contextlib.suppress(RuntimeError):
        drainer.begin(Order(announce, 0.2, True, "SIGTERM", None, True))
    async with asyncio.timeout(PATIENCE):
        await ended.wait()
