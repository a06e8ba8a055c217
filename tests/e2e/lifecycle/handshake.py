"""Runs in a network namespace where the last segment of a client's handshake is lost, for test_handshakes.py.

    python -m tests.e2e.lifecycle.handshake DIRECTORY ENGINE HOW

The client takes itself for connected from the second segment on. Meanwhile the relay stops listening, by a drain, by
SIGTERM or by a reload, or by a drain that is taken back. Exit status 0 if the client is served all the same.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from tests.support.clients import connect, receive
from tests.support.harness import Relay
from tests.support.namespace import nft
from tests.support.observe import tcp_ports, wait_until
from tests.support.relay_toml import listener, settings
from tests.support.upstreams import Echo

RULE = """\
table ip lossy {{
    chain in {{
        type filter hook input priority 0;
        tcp dport {port} tcp flags & (syn | ack) == ack drop;
    }}
}}
"""
SYN_RECV = "03"  # net/tcp_states.h


def half_open(port: int) -> bool:
    """Whether a handshake is under way there."""
    return any(local == port for local, _ in tcp_ports(SYN_RECV))


def main() -> None:
    directory, engine, how = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    with Echo() as echo:
        both = listener(echo.address), listener(echo.address, name="other")
        environ = {"RELAY_ENGINE": engine, "RELAY_DRAIN__ANNOUNCE": "0.0"}
        with Relay(directory, settings(*both), environ=environ) as relay:
            address = relay.address("other")
            nft("-f", "-", text=RULE.format(port=address[1]))
            with connect(address) as client:
                client.sendall(b"hello")
                assert half_open(address[1])
                if how == "reload":
                    relay.config.write_text(settings(both[0]))
                    relay.signal(signal.SIGHUP)
                    wait_until(lambda: relay.events("reloaded"), what="the reload")
                elif how == "SIGTERM":
                    relay.signal(signal.SIGTERM)
                    wait_until(lambda: relay.events("closing connections"), what="the drain")
                else:
                    assert relay.post("/drain")[0] == 202
                    relay.wait_phase("closing")
                    if how == "undrain":
                        assert relay.post("/undrain")[0] == 200
                assert half_open(address[1])
                nft("delete", "table", "ip", "lossy")
                assert receive(client, 5) == b"hello"
            if how == "SIGTERM":
                assert relay.wait() == 0
            lines = relay.access(1)
            assert [line["bytes_up"] for line in lines] == [5]


if __name__ == "__main__":
    main()
