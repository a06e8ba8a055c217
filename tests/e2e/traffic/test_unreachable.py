"""An ICMP "host unreachable" says that a packet was lost, not a connection: TCP tries again, so the relay waits."""

from __future__ import annotations

from pathlib import Path

from tests.support.namespace import inside, needs_namespace, needs_nft


@needs_namespace
@needs_nft
def test_a_connection_outlives_a_route_that_is_gone_for_a_while(tmp_path: Path, engine: str) -> None:
    inside("tests.e2e.traffic.unreachable", tmp_path, engine)
