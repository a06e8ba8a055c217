"""A setting that was renamed: the old name works until it ends, says so, and never contradicts the new one."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay import __version__
from relay.settings import names
from relay.settings.model import Settings, SettingsError, admin_bind, load, render
from relay.settings.names import RENAMED, Renamed, line_of, renew
from relay.settings.reference import document
from relay.settings.schema import find, leaves_of
from relay.settings.warnings import settings_warnings
from scripts.release import order

Load = Callable[..., Settings]
Problems = Callable[..., list[str]]

SHORT = 'upstream = ["hub.example"]\n'
ENDS = "deprecated name, unknown from version 9.0.0 on"


@pytest.fixture(autouse=True)
def renamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names that settings might have had before: in the same table, in another, at the top, in a list of tables."""
    for old, new in {
        "limits.most": "limits.max_connections",
        "patience.silence": "timeouts.idle",
        "processes": "workers",
        "admin_address": "admin.bind",
        "listeners.to": "listeners.upstream",
    }.items():
        monkeypatch.setitem(RENAMED, old, Renamed(new, "9.0.0"))


def file_warning(tmp_path: Path, old: str, line: int, new: str) -> str:
    return f"{old} ({tmp_path}/relay.toml, line {line}): {ENDS}; write {new}"


# --- the table itself -------------------------------------------------------------------------------------------------


def test_the_table_is_true_of_the_settings_and_of_this_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails once a version is due in which an old name ends: then its line goes, with a line in CHANGELOG.md."""
    monkeypatch.undo()
    for old, renamed in RENAMED.items():
        assert find(Settings, tuple(old.split("."))) is None, old
        assert find(Settings, tuple(renamed.new.split("."))) is not None, renamed.new
        assert order(renamed.until) > order(__version__), f"{old} ends with {renamed.until}"


def test_the_reference_lists_the_old_names(monkeypatch: pytest.MonkeyPatch) -> None:
    row = "| `limits.most` | `limits.max_connections` | 9.0.0 | `RELAY_LIMITS__MOST` |"
    assert row in document(Settings).splitlines()
    assert "| `listeners.to` | `listeners.upstream` | 9.0.0 | in `RELAY_LISTENERS` |" in document(Settings).splitlines()
    monkeypatch.undo()
    assert ("## Deprecated names" in document(Settings)) is bool(RENAMED)


# --- it goes on working -----------------------------------------------------------------------------------------------


def test_an_old_name_in_the_file_works_and_says_so(load_text: Load, tmp_path: Path) -> None:
    settings = load_text(f"{SHORT}processes = 3\n\n[limits]\n# most = 1\nmost = 7\n[patience]\nsilence = 2000.0\n")
    assert (settings.workers, settings.limits.max_connections, settings.timeouts.idle) == (3, 7, 2000.0)
    assert settings_warnings(settings) == [
        file_warning(tmp_path, "limits.most", 6, "limits.max_connections"),
        file_warning(tmp_path, "patience.silence", 8, "timeouts.idle"),
        file_warning(tmp_path, "processes", 2, "workers"),
    ]


def test_an_old_name_in_the_environment_works_and_says_so(load_text: Load) -> None:
    settings = load_text(SHORT, {"RELAY_LIMITS__MOST": "7", "RELAY_PROCESSES": "3"})
    assert (settings.workers, settings.limits.max_connections) == (3, 7)
    assert settings_warnings(settings) == [
        f"RELAY_LIMITS__MOST: {ENDS}; write RELAY_LIMITS__MAX_CONNECTIONS",
        f"RELAY_PROCESSES: {ENDS}; write RELAY_WORKERS",
    ]


def test_an_old_name_in_listeners_is_one_warning_however_many_there_are(load_text: Load, tmp_path: Path) -> None:
    tables = "".join(f'[[listeners]]\nname = "n{n}"\nbind = ["127.0.0.1:{n}"]\nto = ["a:1"]\n' for n in range(1, 4))
    settings = load_text(tables)
    assert [item.upstream for item in settings.listeners] == [("a:1",)] * 3
    where = f"listeners[0].to ({tmp_path}/relay.toml, line 4) and 2 more"
    assert list(settings.deprecated) == [f"{where}: {ENDS}; write listeners.upstream"]
    text = json.dumps([{"name": "x", "bind": ["127.0.0.1:1"], "to": ["a:1"]}])
    settings = load_text(None, {"RELAY_LISTENERS": text})
    assert settings.listeners[0].upstream == ("a:1",)
    assert list(settings.deprecated) == [f"RELAY_LISTENERS (listeners[0].to): {ENDS}; write listeners.upstream"]


def test_the_environment_wins_whichever_name_is_where(load_text: Load) -> None:
    both = load_text(SHORT + "[limits]\nmost = 7\n", {"RELAY_LIMITS__MAX_CONNECTIONS": "8"})
    assert (both.limits.max_connections, len(both.deprecated)) == (8, 1)
    both = load_text(SHORT + "[limits]\nmax_connections = 7\n", {"RELAY_LIMITS__MOST": "8"})
    assert (both.limits.max_connections, len(both.deprecated)) == (8, 1)


def test_settings_without_an_old_name_have_no_warning(load_text: Load) -> None:
    assert load_text(SHORT, {"RELAY_WORKERS": "1"}).deprecated == ()


def test_relay_config_writes_the_new_name(load_text: Load) -> None:
    shown = render(load_text(SHORT + "[limits]\nmost = 7\n"))
    assert tomllib.loads(shown)["limits"]["max_connections"] == 7
    again = load_text(shown)
    assert (again.limits.max_connections, again.deprecated) == (7, ())


def test_a_section_whose_settings_have_all_moved_is_no_mistake(load_text: Load) -> None:
    assert load_text(SHORT + "[patience]\n# silence = 5.0\n").deprecated == ()


def test_commands_find_the_admin_port_under_its_old_name(tmp_path: Path) -> None:
    file = tmp_path / "relay.toml"
    file.write_text('admin_address = "127.0.0.1:99"\n')
    assert admin_bind(file, {}) == "127.0.0.1:99"
    assert admin_bind(None, {"RELAY_ADMIN_ADDRESS": "127.0.0.1:98"}) == "127.0.0.1:98"


# --- mistakes ---------------------------------------------------------------------------------------------------------


def test_both_names_are_a_mistake_that_names_both(problems: Problems) -> None:
    rest = "both given, and the first is the deprecated name of the second; keep"
    assert problems(SHORT + "[limits]\nmost = 7\nmax_connections = 7\n") == [
        f"limits.most and limits.max_connections: {rest} limits.max_connections"
    ]
    assert problems(SHORT, {"RELAY_PROCESSES": "3", "RELAY_WORKERS": "3"}) == [
        f"RELAY_PROCESSES and RELAY_WORKERS: {rest} RELAY_WORKERS"
    ]
    text = json.dumps([{"name": "x", "bind": ["127.0.0.1:1"], "to": ["a:1"], "upstream": ["a:1"]}])
    assert problems(None, {"RELAY_LISTENERS": text}) == [
        f"RELAY_LISTENERS (listeners[0].to) and listeners[0].upstream: {rest} listeners[0].upstream"
    ]


def test_a_mistake_in_a_value_names_what_was_written(problems: Problems) -> None:
    toml = SHORT + "[limits]\nmost = -1\n"
    assert problems(toml)[0].startswith("limits.most (limits.max_connections): -1 is out of range (0 to 10000000); ")
    (problem,) = problems(SHORT, {"RELAY_LIMITS__MOST": "x"})
    assert problem.startswith('RELAY_LIMITS__MOST (limits.max_connections): "x" is not a whole number; ')
    (problem,) = problems(toml.replace("-1", "1"), {"RELAY_LIMITS__MAX_CONNECTIONS": "-1"})
    assert problem.startswith("RELAY_LIMITS__MAX_CONNECTIONS (limits.max_connections): -1 is out of range")
    (problem,) = problems('[[listeners]]\nname = "x"\nbind = ["127.0.0.1:1"]\nto = ["-"]\n')
    assert problem.startswith('listeners[0].to (listeners[0].upstream[0]): "-" ')


def test_a_new_section_that_is_no_table_is_told_of(problems: Problems) -> None:
    assert "timeouts: 5 is not a table; write [timeouts]" in problems(
        "timeouts = 5\n" + SHORT + "[patience]\nsilence = 1.0\n"
    )


def test_an_ended_name_is_unknown_with_the_name_that_is_near(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delitem(RENAMED, "limits.most")
    file = tmp_path / "relay.toml"
    file.write_text(SHORT + "[limits]\nmost = 7\n")
    with pytest.raises(SettingsError, match=r"^limits\.most: unknown setting"):
        load(file, {})


# --- places in the file -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("toml", "line"),
    [
        ("[limits]\nmost = 1", 2),
        ("limits.most = 1", 1),
        ("[limits]\r\n'most' = 1\r\n", 2),
        ('[limits]\n"most"=1', 2),
        ("# most = 0\nlimits = { rate = 1, most = 1 }", 2),
        ('a = """\n[limits]\nmost = 2\n"""\n[other]\nmost = 3\n[limits]\nx = [\n1,\n]\nmost = [\n1\n]\n', 11),
        ("[limits]\n# \u0007most\n" + '"mo\\u0073t" = 1', 0),  # spelled in a way that nobody spells it
        ("[other]\nmost = 1\n", 0),
    ],
)
def test_the_line_of_a_name(toml: str, line: int) -> None:
    assert line_of(("limits", "most"), toml) == line


def test_the_line_in_a_list_of_tables() -> None:
    toml = "[[listeners]]\nupstream = 1\n[[listeners]]\nto = 2\n[[listeners]]\nto = 3\n"
    assert line_of(("listeners", 1, "to"), toml) == 4
    assert line_of(("listeners", 2, "to"), toml) == 6


def test_a_file_of_lookalikes_is_given_up() -> None:
    assert line_of(("limits", "most"), "# most = 1\n" * (names.MOST_CANDIDATES + 1) + "[limits]\nmost = 1\n") == 0


KEYS = st.sampled_from(["limits", "most", "patience", "silence", "processes", "listeners", "to", "upstream", "x"])
VALUES = st.recursive(
    st.integers() | st.text(max_size=3),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(KEYS, below, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(KEYS, VALUES, max_size=5))
def test_whatever_is_in_a_file_no_old_name_is_left(values: dict[str, Any]) -> None:
    renew(values)
    assert renew(values) == []


@given(st.dictionaries(st.sampled_from([setting.name for setting in leaves_of(Settings)]), st.integers(), max_size=5))
def test_new_names_are_left_alone(flat: dict[str, int]) -> None:
    values: dict[str, Any] = {}
    for name, number in flat.items():
        table = values
        *above, last = name.split(".")
        for key in above:
            table = table.setdefault(key, {})
        table[last] = number
    before = json.dumps(values)
    assert renew(values) == []
    assert json.dumps(values) == before


def test_an_included_file_may_have_an_old_name(tmp_path: Path) -> None:
    listener = '[[listeners]]\nname = "{0}"\nbind = ["127.0.0.1:{1}"]\n{2} = ["hub.example:1"]\n'
    config = tmp_path / "relay.toml"
    config.write_text('include = ["l.toml"]\n' + listener.format("one", 1, "upstream"))
    (tmp_path / "l.toml").write_text(listener.format("two", 2, "upstream") + listener.format("three", 3, "to"))
    settings = load(config, {})
    assert [item.upstream for item in settings.listeners] == [("hub.example:1",)] * 3
    warned = f"listeners[2].to (l.toml, line 8): {ENDS}; write listeners.upstream"
    assert warned in settings_warnings(settings)
    (tmp_path / "l.toml").write_text(listener.format("two", 2, "to") + 'upstream = ["other.example:1"]\n')
    with pytest.raises(SettingsError) as raised:
        load(config, {})
    both = "listeners[1].to and listeners[1].upstream: both given, and the first is the deprecated name of the second"
    assert raised.value.problems == [f"{both}; keep listeners[1].upstream"]
    (tmp_path / "l.toml").write_text(listener.format("two", 2, "to").replace("hub.example:1", "x"))
    with pytest.raises(SettingsError, match=r"^listeners\[1\].to \(listeners\[1\].upstream\[0\]\): "):
        load(config, {})
