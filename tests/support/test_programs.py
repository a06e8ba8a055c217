"""The helpers that start programs for the tests."""

from __future__ import annotations

import socket
from pathlib import Path

from tests.support.programs import free_port


def test_a_free_port_is_none_that_the_kernel_gives_to_others() -> None:
    low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    for _ in range(100):
        port = free_port()
        assert 1024 <= port < 65_536
        assert not low <= port <= high
        with socket.create_server(("127.0.0.1", port)):
            assert free_port() != port
