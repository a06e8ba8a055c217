"""A stand-in for a relay's admin port, and for other programs that might have the port: answers what a test says."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

RELAY = "relay/9.8.7"


@dataclass
class Reply:
    """One answer. `server` is the Server header, none if it is empty."""

    status: int = 200
    body: Any = "ok\n"
    server: str = RELAY
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def content(self) -> bytes:
        if isinstance(self.body, bytes):
            return self.body
        return (self.body if isinstance(self.body, str) else json.dumps(self.body)).encode()


class Port:
    """What listens there. `answer` gives the reply to a request such as "POST /drain"; `asked` has all of those."""

    def __init__(self, answer: Callable[[str], Reply]) -> None:
        self.answer = answer
        self.asked: list[str] = []
        self.url = ""


@contextlib.contextmanager
def admin_port(answer: Callable[[str], Reply] | Reply) -> Iterator[Port]:
    """Serve it on loopback."""
    port = Port(answer if callable(answer) else lambda _request: answer)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            request = f"{self.command} {self.path}"
            port.asked.append(request)
            reply = port.answer(request)
            self.send_response_only(reply.status)
            if reply.server:
                self.send_header("Server", reply.server)
            for name, value in {"Content-Length": str(len(reply.content)), **reply.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(reply.content)

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, *_arguments: object) -> None:
            """Not on a test's standard error."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        port.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=[0.01])
        thread.start()
        try:
            yield port
        finally:
            server.shutdown()
            thread.join()
