"""The preread filter of a listener: whether a PROXY header is read, and which server names (SNI) are let through.

This module only decides; it touches no socket. All bytes after a PROXY header go to the upstream unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence

from relay.core import client_hello, proxy_header
from relay.core.client_hello import ClientHello
from relay.engines.contract import Preread
from relay.ipc.worker_spec import ProxyProtocol


class PrereadFilter:
    """What one listener prereads: a PROXY header, and, if `names` is not empty, a TLS hello with one of the names.

    A name is exact, or `*.suffix` for every name that ends in `.suffix`; lower-case and without a trailing dot.
    `action` makes the engine preread; `timeout` is for everything that is preread, in seconds, 0 for none.
    """

    def __init__(self, names: Sequence[str], timeout: float, proxy_protocol: ProxyProtocol = "off") -> None:
        self._exact = frozenset(name for name in names if not name.startswith("*."))
        self._suffixes = frozenset(name[2:] for name in names if name.startswith("*."))
        self.wants_hello = bool(names)
        self.reads_proxy = proxy_protocol != "off"
        self.requires_proxy = proxy_protocol == "require"
        self.action = Preread(client_hello.LIMIT + (proxy_header.LIMIT if self.reads_proxy else 0), timeout)

    def allows(self, hello: ClientHello) -> bool:
        """Whether the server name of this hello is let through; a hello without one is not."""
        name = hello.server_name
        if name in self._exact:
            return True
        _, dot, rest = name.partition(".")
        while dot:
            if rest in self._suffixes:
                return True
            _, dot, rest = rest.partition(".")
        return False
