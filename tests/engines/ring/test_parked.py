"""What the ring keeps for a silent connection, as the kernel shows it in /proc/self/fdinfo."""

from __future__ import annotations

from pathlib import Path

import pytest

from relay.engines import idle
from relay.engines.contract import Timeouts
from relay.engines.ring import abi
from relay.engines.ring.selector import RingLoop
from tests.engines.lab import Lab
from tests.engines.peers import receive
from tests.engines.ring.rings import ring_kind
from tests.engines.running import RunningEngine


def under_way(engine: RunningEngine) -> list[int]:
    """The opcodes of the operations that wait in the ring: fdinfo's PollList, `op=6, task_works=0`."""
    assert isinstance(engine.loop, RingLoop)
    descriptor = engine.loop.ring_selector.reactor.ring.descriptor
    lines = Path(f"/proc/self/fdinfo/{descriptor}").read_text().partition("PollList:")[2].splitlines()
    return [int(line.strip().removeprefix("op=").partition(",")[0]) for line in lines if "op=" in line]


def test_a_silent_connection_is_kept_by_polls_and_not_by_receives(monkeypatch: pytest.MonkeyPatch) -> None:
    """A receive has a buffer for its message's header, 512 bytes of kernel memory; a poll has none."""
    monkeypatch.setattr(idle, "LONG_IDLE", 0.3)
    lab = Lab(ring_kind())
    try:
        engine = lab.start(timeouts=Timeouts(idle=0.0, half_close=1.6))
        client, upstream, _ = lab.couple(engine)
        client.sendall(b"x")
        assert receive(upstream, 1) == b"x"
        engine.wait(lambda: under_way(engine).count(abi.IORING_OP_RECV) == 2, "both sides are received from")
        engine.wait(lambda: abi.IORING_OP_RECV not in under_way(engine), "both are polled")
        client.sendall(b"y")
        assert receive(upstream, 1) == b"y"
        engine.wait(lambda: abi.IORING_OP_RECV in under_way(engine), "the one that has spoken is received from")
    finally:
        lab.close()
