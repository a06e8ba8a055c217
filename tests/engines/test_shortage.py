"""Out of descriptors: accepting pauses instead of spinning and goes on; a dial that cannot be made is told."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any

import pytest

from tests.engines.kinds import Kind
from tests.engines.lab import IPV4, Lab
from tests.engines.peers import address_of, receive, receive_to_reset, reset
from tests.engines.running import DEADLINE
from tests.support.programs import PATIENCE, ROOT

State = dict[str, Any]
Start = Callable[[int], "Short"]


class Short:
    """The process with the engine; `port` is what it dials, 0 for nothing."""

    def __init__(self, kind: Kind, lab: Lab, port: int) -> None:
        listener = lab.listening()
        self.address = address_of(listener)
        command = [sys.executable, "-m", "tests.engines.short", kind.name, str(listener.fileno()), IPV4, str(port)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True, pass_fds=[listener.fileno()], env=dict(os.environ)
        )
        listener.close()

    def tell(self, command: str) -> State:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, "the process has ended"
        state: State = json.loads(line)
        return state

    def wait(self, condition: Callable[[State], object], what: str) -> State:
        """Ask until the state is as it should be."""
        deadline = monotonic() + DEADLINE
        while not condition(state := self.tell("state")):
            assert monotonic() < deadline, f"not within {DEADLINE} s: {what}; {state}"
        return state

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        try:
            assert self.process.wait(DEADLINE) == 0
        finally:
            self.process.kill()
            self.process.wait()
            self.process.stdout.close()


@pytest.fixture
def start(kind: Kind, lab: Lab) -> Iterator[Start]:
    started: list[Short] = []

    def begin(port: int = 0) -> Short:
        started.append(Short(kind, lab, port))
        return started[-1]

    yield begin
    for short in started:
        short.close()


def test_accepting_pauses_and_goes_on_when_descriptors_are_free(lab: Lab, start: Start) -> None:
    short = start(0)
    short.tell("spare 8")
    clients = [lab.connected(short.address) for _ in range(14)]
    state = short.wait(lambda state: state["accept_pauses"] > 1, "accepting pauses")
    assert state["accepted"] == 8
    for client in clients[:3]:
        reset(client)
    short.wait(lambda state: state["accepted"] == 11, "as many as there was room for")
    for client in clients[3:8]:
        reset(client)
    state = short.wait(lambda state: state["accepted"] == 14 and state["connections"] == 6, "the whole queue")
    assert state["errors"] == []
    for client in clients[8:]:
        reset(client)
    short.wait(lambda state: state["connections"] == 0, "nobody is left")


def test_shortage_costs_next_to_no_cpu(lab: Lab, start: Start) -> None:
    short = start(0)
    short.tell("spare 4")
    for _ in range(10):
        lab.connected(short.address)
    before = short.wait(lambda state: state["accept_pauses"] >= 2, "accepting pauses")
    # One pause for each tick: so many show that the engine keeps trying; asked for seldom, since asking costs too.
    after = before
    quiet = lab.start()
    while after["accept_pauses"] < before["accept_pauses"] + 20:
        quiet.wait_ticks(10)
        after = short.tell("state")
        assert after["time"] - before["time"] < DEADLINE
    seconds = after["time"] - before["time"]
    share = 0.4 if PATIENCE == 1 else 0.6  # an emulated processor needs more for the same
    assert after["cpu"] - before["cpu"] < share * seconds  # who spins needs all of it, as far as there are processors
    assert after["accept_pauses"] - before["accept_pauses"] <= seconds / 0.02 + 2, "not more often than it ticks"
    assert after["errors"] == []


def test_dial_without_a_descriptor_is_told(lab: Lab, start: Start) -> None:
    server = lab.listening()
    short = start(address_of(server)[1])
    short.tell("spare 5")
    served = []
    for _ in range(2):
        client = lab.connected(short.address)
        served.append((client, lab.accepted(server)))
    receive_to_reset(lab.connected(short.address))
    state = short.wait(lambda state: ["DIAL_FAILED", errno.EMFILE] in state["events"], "the dial failed")
    assert state["connections"] == 2
    for client, upstream in served:
        client.sendall(b"still here")
        assert receive(upstream, 10) == b"still here"
    reset(served[0][0])
    short.wait(lambda state: state["connections"] == 1, "its descriptors are free")
    client = lab.connected(short.address)
    client.sendall(b"room again")
    assert receive(lab.accepted(server), 10) == b"room again"
