"""What a client says before anything is dialled: for whom it speaks, whom its TLS hello names, and what is let through.

Decides; touches no socket. Behind a PROXY protocol header, the bytes are passed on as they came.
"""

from __future__ import annotations

from collections.abc import Sequence

from relay.core import client_hello, proxy_header
from relay.core.client_hello import ClientHello
from relay.engines.contract import Preread
from relay.ipc.worker_spec import ProxyProtocol


class PrereadFilter:
    """What one listener asks for: TLS with one of these names, if there are any, and the PROXY protocol.

    A name is exact, or `*.suffix` for every name that ends in `.suffix`; lower-case and without a trailing dot.
    `action` waits for all of it; its timeout is in seconds, 0 for none.
    """

    def __init__(self, names: Sequence[str], timeout: float, proxy_protocol: ProxyProtocol = "off") -> None:
        self._exact = frozenset(name for name in names if not name.startswith("*."))
        self._suffixes = frozenset(name[2:] for name in names if name.startswith("*."))
        self.wants_hello = bool(names)
        self.reads_proxy = proxy_protocol != "off"
        self.requires_proxy = proxy_protocol == "require"
        self.action = Preread(client_hello.LIMIT + (proxy_header.LIMIT if self.reads_proxy else 0), timeout)

    def allows(self, hello: ClientHello) -> bool:
        """Whether a connection with this hello may go on. One without a name may not."""
        name = hello.server_name
        if name in self._exact:
            return True
        _, dot, rest = name.partition(".")
        while dot:
            if rest in self._suffixes:
                return True
            _, dot, rest = rest.partition(".")
        return False
