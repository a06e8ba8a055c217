"""The preread filter of a listener: what is read before an upstream is chosen, and which upstream follows from it.

This module only decides; it touches no socket. All bytes after a PROXY header go to the upstream unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

from relay.address import Address
from relay.core import client_hello, proxy_header
from relay.core.access_list import AccessList
from relay.core.routes import OWN, Router
from relay.engines.contract import Preread
from relay.ipc.worker_spec import ProxyProtocol
from relay.worker.connection.admission import pack_mapped

F = TypeVar("F")


class RouteChoice(NamedTuple, Generic[F]):
    """One route of a listener: its names, whether it is on now, and the frontend of its connections."""

    names: Sequence[str]
    is_on: Callable[[], bool]
    frontend: F


class PrereadFilter(Generic[F]):
    """What one listener prereads: a PROXY header, and a TLS hello if the listener has names or routes.

    `names` are let through to the listener's own upstream, and `own` says whether it has one; see `Router`. A name is
    exact, or `*.suffix` for every name that ends in `.suffix`; lower-case and without a trailing dot. `action` makes
    the engine preread; `timeout` is for everything that is preread, in seconds, 0 for none.
    """

    def __init__(
        self,
        names: Sequence[str],
        timeout: float,
        proxy_protocol: ProxyProtocol = "off",
        routes: Sequence[RouteChoice[F]] = (),
        *,
        own: bool = True,
        trusted: AccessList | None = None,
    ) -> None:
        """`trusted` are the senders whose PROXY headers count; None: all are."""
        self._trusted = trusted
        self._names = names
        self._choices = routes
        self._own = own
        self.reads_proxy = proxy_protocol != "off"
        self.requires_proxy = proxy_protocol == "require"
        self.action = Preread(client_hello.LIMIT + (proxy_header.LIMIT if self.reads_proxy else 0), timeout)
        self.refresh()

    def refresh(self) -> None:
        """Take in which routes are on. A route that is off counts as not written."""
        choices = [choice for choice in self._choices if choice.is_on()]
        self._frontends = [choice.frontend for choice in choices]
        self._router = Router([choice.names for choice in choices], self._names, own=self._own)
        self.wants_hello = self._router.reads
        self.active = self.wants_hello or self.reads_proxy  # whether anything is read at all
        self.passes_others = self._router.others  # whether what is no TLS goes to the listener's own upstream

    def trusts(self, sender: Address) -> bool:
        """Whether a PROXY header from this sender counts."""
        return self._trusted is None or self._trusted.allows(pack_mapped(sender[0]))

    def choose(self, name: str, own: F) -> F | None:
        """The frontend for a hello with this server name: that of a route, or `own`; None: it is refused."""
        position = self._router.decide(name)
        if position is None:
            return None
        return own if position == OWN else self._frontends[position]
