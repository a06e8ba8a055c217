"""What a client says before anything is dialled: whom its TLS hello names, and whether that is let through.

Decides; touches no socket. The bytes are passed on as they came.
"""

from __future__ import annotations

from collections.abc import Sequence

from relay.core import client_hello
from relay.core.client_hello import ClientHello
from relay.engines.contract import Sniff


class Gate:
    """The names that one listener lets through: exact ones, and `*.suffix` for every name that ends in `.suffix`.

    Names are lower-case and without a trailing dot. `sniff` is the action that waits for a hello; its timeout is in
    seconds, 0 for none.
    """

    def __init__(self, names: Sequence[str], timeout: float) -> None:
        self._exact = frozenset(name for name in names if not name.startswith("*."))
        self._suffixes = frozenset(name[2:] for name in names if name.startswith("*."))
        self.sniff = Sniff(client_hello.LIMIT, timeout)

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
