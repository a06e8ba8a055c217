"""An engine in a process of its own that can be made to run out of descriptors.

    python -m tests.engines.short KIND FD HOST PORT

FD is a listening socket. HOST and PORT are dialled for every connection; with PORT 0 every connection waits. Each line
on standard input is a command, answered with one line of JSON, the state of the engine:

    spare N     lower the limit of descriptors so that N are left
    state       nothing but the answer
"""

from __future__ import annotations

import json
import os
import resource
import socket
import sys
import time
from pathlib import Path

from relay.engines.contract import Action, Dial, TcpOptions, Timeouts, Wait
from tests.engines.kinds import KINDS
from tests.engines.running import DEADLINE, RunningEngine
from tests.engines.script import Script


def state(engine: RunningEngine) -> dict[str, object]:
    """The state that the test checks."""
    events = [(event.name, value) for handler in engine.handlers.values() for event, value in handler.events]
    return {
        "accept_pauses": engine.engine.accept_pauses,
        "accepted": len(engine.handlers),
        "connections": engine.engine.connections,
        "cpu": time.process_time(),
        "errors": [str(error) for error in engine.errors],
        "events": events,
        "time": time.monotonic(),
    }


def main() -> None:
    """Serve until standard input ends."""
    kind, fd, host, port = sys.argv[1:]
    engine = RunningEngine(KINDS[kind], Timeouts(0.0, 0.0), TcpOptions(), False)
    first: Action = Dial((host, int(port)), "", DEADLINE) if int(port) else Wait()
    engine.listen(socket.socket(fileno=int(fd)), Script(first))
    for line in sys.stdin:
        command, *arguments = line.split()
        if command == "spare":
            # The limit is on the number of a descriptor, not on how many there are: so fill the gaps first.
            highest = max(int(path.name) for path in Path("/proc/self/fd").iterdir())
            while (number := os.dup(0)) < highest:
                pass
            resource.setrlimit(resource.RLIMIT_NOFILE, (number + 1 + int(arguments[0]),) * 2)
        sys.stdout.write(json.dumps(state(engine)) + "\n")
        sys.stdout.flush()
    engine.close()


if __name__ == "__main__":
    main()
