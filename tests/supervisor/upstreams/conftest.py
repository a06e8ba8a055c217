"""A name server on loopback, and a resolver that asks it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from relay.supervisor.upstreams import resolver as resolving
from relay.supervisor.upstreams.resolver import Resolver
from tests.support.name_server import NameServer


@pytest.fixture
def server() -> Iterator[NameServer]:
    made = NameServer()
    yield made
    made.close()


@pytest.fixture
def resolver(server: NameServer, tmp_path: Path) -> Resolver:
    return Resolver([server.address], tmp_path / "hosts")


@pytest.fixture
def resolv_conf(server: NameServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The machine's resolv.conf, for the test to write; whatever name server it names is `server`, if on 127.0.0.1."""
    path = tmp_path / "resolv.conf"
    monkeypatch.setattr(resolving, "RESOLV_CONF", path)
    monkeypatch.setattr(resolving, "DNS_PORT", server.address[1])
    return path
