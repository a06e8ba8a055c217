"""The short form at its own ports: a hub's route for its devices is there while their name resolves."""

from __future__ import annotations

from pathlib import Path

from tests.support.namespace import inside, needs_namespace


@needs_namespace
def test_the_route_for_devices_is_on_while_their_name_resolves(tmp_path: Path, engine: str) -> None:
    inside("tests.e2e.routes.short_form", tmp_path, engine)
