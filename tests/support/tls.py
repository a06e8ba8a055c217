"""Certificates for a test's TLS server and clients. The relay itself gets none of them."""

from __future__ import annotations

import ssl
from pathlib import Path

import trustme

NAME = "hub.example"


class Tls:
    """An authority and a certificate for NAME and localhost."""

    def __init__(self, directory: Path) -> None:
        authority = trustme.CA()
        self.authority = directory / "authority.pem"
        authority.cert_pem.write_to_path(str(self.authority))
        self.server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(NAME, "localhost").configure_cert(self.server)
        self.names: list[str | None] = []  # the SNI of each handshake
        self.server.sni_callback = self._named

    def _named(self, _sock: ssl.SSLObject, name: str | None, _context: ssl.SSLContext) -> None:
        self.names.append(name)

    def client(self, version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
        """A client context that trusts the authority and checks the name."""
        context = ssl.create_default_context(cafile=str(self.authority))
        if version is not None:
            context.minimum_version = context.maximum_version = version
        return context
