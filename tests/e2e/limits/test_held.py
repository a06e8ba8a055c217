"""limits.held_bytes: a thousand peers that do not read, with fast senders opposite, cost a worker no more than that."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

from tests.support.clients import connect, exchange
from tests.support.harness import Relay, Start
from tests.support.observe import wait_until
from tests.support.relay_toml import listener, settings
from tests.support.upstreams import Echo

PEERS = 1000
BUFFER = 16384  # bytes of kernel buffer at the far ends: what this is about lies in the relay
LIMIT = 24 << 20  # bytes; without a limit a thousand such peers make a worker hold half as much again
LOOKS = 80  # without a byte taken, a hundredth of a second each: a worker tells of itself four times a second
MARGIN = 32 << 20  # bytes: the receive buffers of the engine, and what the connections themselves take


def resident(pid: int) -> int:
    """Bytes of memory that a process has to itself."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith(("Private_Clean:", "Private_Dirty:")))


def held(relay: Relay) -> int:
    return int(relay.status()["workers"][0]["held_bytes"])


def test_a_thousand_peers_that_do_not_read(echo: Echo, start: Start) -> None:
    with contextlib.ExitStack() as stack:
        deaf = stack.enter_context(socket.socket())
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(PEERS)
        relay = start(
            settings(
                listener(deaf.getsockname()),
                listener(echo.address, name="other"),
                tables=f"[limits]\nheld_bytes = {LIMIT}",
            )
        )
        (worker,) = relay.worker_pids()
        before = resident(worker)
        senders = []
        for _ in range(PEERS):
            sock = stack.enter_context(socket.socket())
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
            sock.connect(relay.address())
            sock.setblocking(False)
            senders.append(sock)
        relay.wait_active(PEERS)
        taken, data = [-1], bytes(65536)

        def nothing_more_is_taken() -> bool:
            """Every sender pushes what it can; the way is full when nobody could since the last look."""
            total = taken[-1]
            for sock in senders:
                with contextlib.suppress(BlockingIOError):
                    while True:
                        total += sock.send(data)
            assert held(relay) <= LIMIT
            taken.append(total)
            return len(taken) > LOOKS and taken[-1] == taken[-LOOKS]

        wait_until(nothing_more_is_taken, 60, lambda: f"the way is full; {taken[-5:]}")
        assert held(relay) > LIMIT // 4, "the limit is what stopped them"
        assert resident(worker) - before < LIMIT + MARGIN
        # Others are served as before.
        with connect(relay.address("other")) as client:
            assert exchange(client) == b"ping"
        assert relay.worker_pids() == [worker]
    relay.wait_active(0)
    wait_until(lambda: held(relay) == 0, what="nothing is held")
