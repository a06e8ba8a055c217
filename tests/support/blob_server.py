"""A stand-in for a storage account's blob service: one blob over TLS, by ETag, for bearers of the right token.

Answers as learn.microsoft.com, "Get Blob", has it. Its name leads here only in a mount namespace with an /etc/hosts of
its own (`wrapper`).
"""

from __future__ import annotations

import shlex
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import trustme

from tests.support.metadata_server import ACCESS
from tests.support.namespace import UNSHARE

HOST = "account.blob.core.windows.net"


class Get(NamedTuple):
    """One request and the answer's status."""

    status: int
    condition: str  # If-None-Match
    version: str  # x-ms-version


class BlobServer:
    """The blob /settings/relay.toml. `etag`: whether answers have one; `status`: answer with that one instead."""

    def __init__(self, folder: Path) -> None:
        authority = trustme.CA()
        self.authority = folder / "storage.pem"
        authority.cert_pem.write_to_path(str(self.authority))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(HOST).configure_cert(context)
        self._hosts = folder / "hosts"
        self._hosts.write_text(f"127.0.0.1 localhost {HOST}\n")
        self.content = b""
        self.etag = True
        self.status = 0
        self.requests: list[Get] = []
        self._version = 0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.url = f"https://{HOST}:{self._server.server_port}/settings/relay.toml"

    def __enter__(self) -> BlobServer:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def put(self, content: str | bytes) -> None:
        """Publish another content."""
        self.content = content.encode() if isinstance(content, str) else content
        self._version += 1

    @property
    def wrapper(self) -> list[str]:
        """A command prefix: its program finds this server by its name."""
        # Without --net of UNSHARE: the network is this one.
        mapped = [option for option in UNSHARE[1:] if option != "--net"]
        script = f'mount --bind {shlex.quote(str(self._hosts))} /etc/hosts && exec "$@"'
        return [UNSHARE[0], "--mount", *mapped, "sh", "-c", script, "sh"]

    @property
    def environ(self) -> dict[str, str]:
        """Variables by which a program trusts this server's certificate."""
        return {"SSL_CERT_FILE": str(self.authority)}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                condition = self.headers.get("If-None-Match", "")
                status = outer._status(self.path, self.headers.get("Authorization", ""), condition)
                outer.requests.append(Get(status, condition, self.headers.get("x-ms-version", "")))
                body = outer.content if status == 200 else b"" if status == 304 else b"<Error/>"
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                if outer.etag and status in (200, 304):
                    self.send_header("ETag", outer._etag())
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_arguments: object) -> None:
                """Not on a test's standard error."""

        return Handler

    def _etag(self) -> str:
        return f'"0x8D{self._version:012X}"'

    def _status(self, path: str, authorization: str, condition: str) -> int:
        if authorization != f"Bearer {ACCESS}":
            return 401
        if self.status:
            return self.status
        if path != "/settings/relay.toml":
            return 404
        return 304 if self.etag and condition == self._etag() else 200
