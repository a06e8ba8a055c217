"""Loading settings from text and from an environment that is not the process's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from relay.settings.model import Settings, SettingsError, load

LISTENER = '[[listeners]]\nname = "mqtt"\nbind = ["0.0.0.0:8883"]\nupstream = ["hub.example:8883"]\n'

Load = Callable[..., Settings]
Problems = Callable[..., list[str]]


@pytest.fixture
def load_text(tmp_path: Path) -> Load:
    def from_text(toml: str | None = None, environ: Mapping[str, str] | None = None) -> Settings:
        path = None
        if toml is not None:
            path = tmp_path / "relay.toml"
            path.write_text(toml, encoding="utf-8")
        return load(path, environ or {})

    return from_text


@pytest.fixture
def problems(load_text: Load) -> Problems:
    """The problems of settings that must have some."""

    def of_text(toml: str | None = None, environ: Mapping[str, str] | None = None) -> list[str]:
        with pytest.raises(SettingsError) as raised:
            load_text(toml, environ)
        for problem in raised.value.problems:
            assert problem.isprintable(), "one line, nothing that a terminal would act on"
        return raised.value.problems

    return of_text
