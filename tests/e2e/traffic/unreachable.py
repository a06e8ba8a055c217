"""Runs in a network namespace where a router claims for a while that a client is unreachable, for test_unreachable.py.

    python -m tests.e2e.traffic.unreachable DIRECTORY ENGINE

Exit status 0 if the client's connection outlived that.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.support.clients import connect, exchange, receive
from tests.support.harness import Relay
from tests.support.namespace import nft
from tests.support.observe import wait_until
from tests.support.relay_toml import listener, settings
from tests.support.upstreams import Echo

RULE = """\
table ip unreachable {{
    chain out {{
        type filter hook output priority 0;
        tcp sport {port} tcp dport {client} reject with icmp type host-unreachable;
    }}
}}
"""


def main() -> None:
    directory, engine = Path(sys.argv[1]), sys.argv[2]
    with Echo() as echo, Relay(directory, settings(listener(echo.address)), environ={"RELAY_ENGINE": engine}) as relay:
        address = relay.address()

        def seen() -> float:
            return relay.metrics().by_label("relay_bytes_total", "direction")["down"]

        with connect(address) as client, connect(address) as other:
            assert exchange(client) == b"ping"
            nft("-f", "-", text=RULE.format(port=address[1], client=client.getsockname()[1]))
            client.sendall(b"again")
            # The engine looks at its connections now and then: here it does so three times.
            for _ in range(3):
                before = seen()
                assert exchange(other, b"x") == b"x"
                wait_until(lambda before=before: seen() > before, what="another look")  # type: ignore[misc]
            nft("delete", "table", "ip", "unreachable")
            assert receive(client, 5) == b"again"
            assert exchange(client) == b"ping"
        relay.wait_outcomes({"ok": 2})


if __name__ == "__main__":
    main()
