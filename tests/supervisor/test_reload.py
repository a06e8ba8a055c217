"""What a reload does to the sockets that stay."""

from __future__ import annotations

import socket
from pathlib import Path

import structlog

from relay.settings.model import load
from relay.supervisor.prepare import prepare
from relay.supervisor.reload import Reloader

TOML = """
workers = 2
engine = "stream"
tcp.keepalive_idle = {idle}
tcp.keepalive_count = {count}
[[listeners]]
name = "main"
bind = ["127.0.0.1:0"]
upstream = ["127.0.0.1:9"]
"""


async def test_clients_that_come_later_have_the_new_keepalive(tmp_path: Path) -> None:
    file = tmp_path / "relay.toml"
    file.write_text(TOML.format(idle=600, count=3))
    instance = prepare(load(file, {}))
    try:
        reloader = Reloader(
            instance, lambda before: load(file, {}, before=before), lambda _: None, lambda: "", structlog.get_logger()
        )
        listening = [sock for binding in instance.bindings() for sock in binding.sockets]
        file.write_text(TOML.format(idle=20, count=5))
        assert await reloader.reload("test") == []
        assert [sock for binding in instance.bindings() for sock in binding.sockets] == listening, "the same ones"
        for sock in listening:
            with socket.create_connection(sock.getsockname()):
                pass
        for sock in listening:
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 20
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT) == 5
    finally:
        instance.close_sockets()
