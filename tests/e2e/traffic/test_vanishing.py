"""Peers from whom nothing comes any more are given up in time; those whom a few packets are lost to are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.namespace import inside, needs_namespace, needs_nft


@needs_namespace
@needs_nft
@pytest.mark.parametrize("who", ["client", "upstream", "closed", "silent"])
def test_a_peer_that_vanishes_is_lost(tmp_path: Path, engine: str, who: str) -> None:
    inside("tests.e2e.traffic.vanishing", tmp_path, engine, who)


@needs_namespace
@needs_nft
def test_a_silent_peer_may_miss_as_many_probes_as_the_settings_say(tmp_path: Path, engine: str) -> None:
    inside("tests.e2e.traffic.vanishing", tmp_path, engine, "probes")
