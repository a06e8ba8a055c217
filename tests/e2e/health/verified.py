"""A listener whose upstream is checked by TLS, for a relay that has every metric that there is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.harness import Relay
from tests.support.relay_toml import listener
from tests.support.tls import Tls
from tests.support.upstreams import Upstream, mute


@contextmanager
def verified_upstream(folder: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """The listener, as TOML, and the relay's environment, in which the upstream's authority is trusted."""
    tls = Tls(folder)
    with Upstream(mute, tls=tls.server) as hub:
        text = listener(f"localhost:{hub.address[1]}", name="verified", more="health_check.tls = true")
        yield text, {"SSL_CERT_FILE": str(tls.authority)}


def wait_verified(relay: Relay) -> None:
    """Wait until a check has verified the certificate."""
    relay.wait_status(lambda status: any(one["certificate_expiry"] for one in status["upstreams"]))
