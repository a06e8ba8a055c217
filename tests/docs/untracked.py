"""Run in a network namespace: counts the kernel's entries of tracked connections, before and after the rules given."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path

from tests.support.namespace import nft

COUNT = Path("/proc/sys/net/netfilter/nf_conntrack_count")
FIREWALL = """\
table inet firewall {
    chain input {
        type filter hook input priority filter; policy accept;
        ct state established accept
    }
}
"""


def tracked(port: int) -> int:
    """How many entries one connection to this port adds."""
    before = int(COUNT.read_text())
    with (
        socket.create_server(("127.0.0.1", port)) as server,
        socket.create_connection(("127.0.0.1", port)) as client,
        server.accept()[0] as accepted,
    ):
        client.sendall(b"x")
        assert accepted.recv(1) == b"x"
        return int(COUNT.read_text()) - before


def main(rules: str, *ports: str) -> None:
    """Print the entries for each port: with a stateful firewall alone, and with the rules beside it."""
    nft("-f", "-", text=FIREWALL)
    alone = [tracked(int(port)) for port in ports]
    nft("-f", "-", text=rules)
    sys.stdout.write(json.dumps([alone, [tracked(int(port)) for port in ports], tracked(9443)]))


if __name__ == "__main__":
    main(*sys.argv[1:])
