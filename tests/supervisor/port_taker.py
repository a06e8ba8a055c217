"""Takes a port as a relay does, again and again; see test_listening.py.

    python -m tests.supervisor.port_taker HOST WORKERS

For each port that it reads, it says how many sockets it has got there (0: it was refused); it lets go of them when it
reads the next line.
"""

from __future__ import annotations

import sys

from relay.engines.contract import TcpOptions
from relay.supervisor.listening import open_sockets


def main() -> None:
    host, workers = sys.argv[1], int(sys.argv[2])
    for line in sys.stdin:
        try:
            sockets = open_sockets(host, int(line), workers, TcpOptions())
        except OSError:
            sockets = []
        print(len(sockets), flush=True)  # noqa: T201 - read by the test
        sys.stdin.readline()
        for sock in sockets:
            sock.close()
        print(0, flush=True)  # noqa: T201 - the same


if __name__ == "__main__":
    main()
