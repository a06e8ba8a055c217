"""Stand-ins for what one address leads to: a hub by both of its names, and the provisioning service, each with TLS.

Each has a certificate for its own name and says its own word, so a client that verifies the name knows where it is.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import trustme

from tests.support.clients import TIMEOUT, drain
from tests.support.upstreams import Handler, Upstream

HUB = "myhub.azure-devices.net"
DEVICE = "myhub.device.azure-devices.net"
DPS = "global.azure-devices-provisioning.net"
STORE = "myaccount.blob.core.windows.net"


def word_of(name: str) -> str:
    """What the stand-in of that name answers, whatever it is asked."""
    return f"this is {name}"


class Places:
    """Stand-ins by name, each on a port of its own, under one authority."""

    def __init__(self, directory: Path, *names: str) -> None:
        authority = trustme.CA()
        self.authority = directory / "authority.pem"
        authority.cert_pem.write_to_path(str(self.authority))
        self.upstreams: dict[str, Upstream] = {}
        for name in names:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            authority.issue_cert(name).configure_cert(context)
            self.upstreams[name] = Upstream(_answering(name), tls=context)

    def __enter__(self) -> Places:
        self._stack = contextlib.ExitStack()
        for upstream in self.upstreams.values():
            self._stack.enter_context(upstream)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def at(self, name: str, *, by_name: bool = False) -> str:
        """host:port of a stand-in; `by_name`: its name in place of its address."""
        host, port = self.upstreams[name].address
        return f"{name if by_name else host}:{port}"

    def served(self) -> dict[str, int]:
        """Connections by stand-in."""
        return {name: upstream.served for name, upstream in self.upstreams.items()}

    @contextlib.contextmanager
    def client(
        self, address: tuple[str, int], name: str | None, version: ssl.TLSVersion | None = None
    ) -> Iterator[ssl.SSLSocket]:
        """A TLS client that asks for `name` and verifies it; None: it sends no name and verifies nothing."""
        context = ssl.create_default_context(cafile=str(self.authority))
        if name is None:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if version is not None:
            context.minimum_version = context.maximum_version = version
        with (
            socket.create_connection(address, TIMEOUT) as sock,
            context.wrap_socket(sock, server_hostname=name) as client,
        ):
            yield client

    def ask(self, address: tuple[str, int], name: str | None, version: ssl.TLSVersion | None = None) -> str:
        """What the stand-in that `address` leads to says."""
        with self.client(address, name, version) as client:
            client.sendall(b"GET / HTTP/1.1\r\n\r\n")
            return drain(client).rpartition(b"\r\n\r\n")[2].decode()


def _answering(name: str) -> Handler:
    def answer(sock: socket.socket) -> None:
        assert isinstance(sock, ssl.SSLSocket)
        word = word_of(name).encode()
        while data := sock.recv(1 << 16):
            if b"\n" in data:
                break
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(word) + word)
        with contextlib.suppress(OSError):
            sock.unwrap()

    return answer


def route(name: str, *sni: str, to: str, more: str = "") -> str:
    """TOML: a route of the listener above."""
    quoted = ", ".join(f'"{text}"' for text in sni)
    return f'[[listeners.routes]]\nname = "{name}"\nsni = [{quoted}]\nupstream = ["{to}"]\n{more}\n'
