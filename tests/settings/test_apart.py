"""Settings that a child process loads are the same, mistakes and warnings included, as those that this one loads."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from relay.settings import apart, file_reader, model
from relay.settings.fingerprint import fingerprint
from relay.settings.model import Settings, SettingsError
from tests.support.hung_file import hung

CUSTOMER = '[[customers]]\nname = "{0}"\nnetworks = ["10.0.{1}.0/24", "2001:db8:{1}::/48"]\nconnect_rate = 0.1\n'
TEXT = """
include = ["c/*.toml"]
[[listeners]]
name = "main"
bind = ["127.0.0.1:1", "[::1]:1"]
proxy_protocol = "require"
trusted_proxies = ["10.0.3.0/24"]
upstream = ["hub.example:1"]
[[listeners.routes]]
name = "r"
sni = ["*.r.example"]
upstream = ["r.example:1"]
rate = 2.5
"""


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apart, "SECONDS", 50.0)  # the machine may be busy, and the deadline has a test of its own


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "1.toml").write_text(CUSTOMER.format("a", 1) + "link_ids = [7]\n" + CUSTOMER.format("b", 2))
    (tmp_path / "relay.toml").write_text(TEXT)
    return tmp_path / "relay.toml"


def environment(**variables: str) -> dict[str, str]:
    return {**{name: text for name, text in os.environ.items() if not name.startswith("RELAY_")}, **variables}


def mistakes(config: Path | None, environ: Mapping[str, str], before: Settings) -> tuple[list[str], bool]:
    with pytest.raises(SettingsError) as raised:
        apart.load(config, environ, before)
    return raised.value.problems, raised.value.absent


def test_they_are_the_same(config: Path) -> None:
    environ = environment(RELAY_TIMEOUTS__IDLE="1800", RELAY_ACCESS__DENY="10.0.0.0/8")
    before = model.load(config, environ)
    (config.parent / "c" / "2.toml").write_text(CUSTOMER.format("c", 3))
    (config.parent / "c" / "1.toml").write_text(CUSTOMER.format("a", 1) + "link_ids = [7]\n" + CUSTOMER.format("b", 4))
    loaded = apart.load(config, environ, before)
    assert loaded == (here := model.load(config, environ))
    assert (fingerprint(loaded), loaded.deprecated, loaded.silent) == (fingerprint(here), (), "")
    assert [item.name for item in loaded.customers] == ["a", "b", "c"]
    assert (loaded.customers[0], loaded.customers[2].networks) == (
        before.customers[0],
        ("10.0.3.0/24", "2001:db8:3::/48"),
    )


def test_mistakes_are_the_same(config: Path) -> None:
    before = model.load(config, environment())
    (config.parent / "c" / "2.toml").write_text(CUSTOMER.format("a", 3) + "wrong = 1\n")
    with pytest.raises(SettingsError) as raised:
        model.load(config, environment())
    assert mistakes(config, environment(), before) == (raised.value.problems, False)
    config.unlink()
    problems, absent = mistakes(config, environment(), before)
    assert (len(problems), absent) == (1, True)


def test_a_change_that_is_certainly_a_mistake_is_refused(config: Path) -> None:
    before = model.load(config, environment())
    (config.parent / "c" / "1.toml").write_text("")
    (problem,), _ = mistakes(config, environment(), before)
    assert problem.startswith("customers: the reload would remove the last of them")
    config.write_text("# nothing\n")
    (problem,), _ = mistakes(config, environment(RELAY_UPSTREAM="hub.example"), before)
    assert "sets nothing: it is empty, or all of it is commented out. That would undo listeners" in problem


def test_without_a_child_this_process_loads_them(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = model.load(config, environment())
    for program in ("/nowhere/python", "/bin/false"):
        monkeypatch.setattr(sys, "executable", program)
        assert apart.load(config, environment(), before) == before


def test_a_file_system_that_hangs_is_left_after_the_deadline(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = model.load(config, environment())
    monkeypatch.setattr(apart, "SECONDS", file_reader.READ_SECONDS / 4)
    with hung(config):
        assert mistakes(config, environment(), before) == (["settings: not read within 1.25 s"], True)
