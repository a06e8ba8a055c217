"""`include`: which files are read, in which order, what may be in them, and what a mistake in one of them says."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from relay.settings import file_reader
from relay.settings.file_reader import Included, read_included, read_included_apart
from relay.settings.model import Settings, SettingsError, load, render
from tests.support.hung_file import hung

MAIN = 'upstream = ["hub.example"]\ninclude = ["c/*.toml"]\n'
PATIENCE = 30.0  # seconds: the machine may be busy, and the deadline has a test of its own
Reading = Callable[[Path, Sequence[str]], list[Included]]


def apart(folder: Path, patterns: Sequence[str]) -> list[Included]:
    return read_included_apart(folder, patterns, PATIENCE)


both = pytest.mark.parametrize("reading", [read_included, apart])


def customer(name: str) -> str:
    return f'[[customers]]\nname = "{name}"\n'


def folder(tmp_path: Path, files: dict[str, str], main: str = MAIN) -> Path:
    for name, text in {"relay.toml": main, **files}.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return tmp_path / "relay.toml"


def mistakes(config: Path) -> list[str]:
    with pytest.raises(SettingsError) as raised:
        load(config, {})
    return raised.value.problems


def names(settings: Settings) -> list[str]:
    return [item.name for item in settings.customers]


@both
def test_files_are_read_in_the_order_of_patterns_and_names_each_once(tmp_path: Path, reading: Reading) -> None:
    everything = ["b.toml", "a.toml", "a-1.toml", ".hidden.toml", "old.toml~", "#x#", "ü.toml", "z z.toml"]
    folder(tmp_path, {f"c/{name}": name for name in everything} | {"other.toml": "other"})
    found = reading(tmp_path, ["other.toml", "c/*.toml*", "c/b.toml", "c/#*"])
    assert found == [
        Included(name, name.rpartition("/")[2].encode() if name != "other.toml" else b"other")
        for name in ("other.toml", "c/a-1.toml", "c/a.toml", "c/b.toml", "c/z z.toml", "c/ü.toml", "c/#x#")
    ]
    outside = tmp_path / "c"
    assert reading(outside, ["../other.toml", str(tmp_path / "other.toml")]) == [
        Included("../other.toml", b"other"),
        Included(str(tmp_path / "other.toml"), b"other"),
    ]


@both
def test_what_cannot_be_read_is_told_and_the_others_are_read(tmp_path: Path, reading: Reading) -> None:
    folder(tmp_path, {"c/a.toml": "a"})
    os.mkfifo(tmp_path / "c" / "pipe")
    (tmp_path / "c" / "gone").symlink_to("nowhere")
    none, gone, pipe, there = reading(tmp_path, ["d/*", "c/gone", "c/pipe", "c/a.toml"])
    assert none == Included("d/*", b"", "matches no file")
    assert gone == Included("c/gone", b"", "no such file or directory", True)
    assert pipe.mistake.startswith("is a pipe")
    assert not pipe.absent
    assert there == Included("c/a.toml", b"a")


@both
def test_there_is_a_limit_for_a_file_and_one_for_all(tmp_path: Path, reading: Reading) -> None:
    folder(tmp_path, {})
    (tmp_path / "c").mkdir()
    for number in range(10):
        with (tmp_path / "c" / f"{number}.toml").open("wb") as file:
            file.truncate(file_reader.MAX_FILE + 1)  # a sparse file of zeros
    found = reading(tmp_path, ["c/*"])
    assert [len(item.content) for item in found] == [file_reader.MAX_FILE + 1] * 7 + [0]
    assert found[-1].mistake == "more than 33554432 bytes with the files before it"
    (tmp_path / "c" / "1.toml").unlink()
    for number in range(2, 10):
        (tmp_path / "c" / f"{number}.toml").unlink()
    assert mistakes(tmp_path / "relay.toml") == [
        "include: c/0.toml: more than 4194304 bytes, which is no settings file"
    ]


def test_a_file_system_that_hangs_is_left_after_the_deadline(tmp_path: Path) -> None:
    config = folder(tmp_path, {"c/a.toml": customer("a")})

    def briefly(where: Path, patterns: Sequence[str]) -> list[Included]:
        return read_included_apart(where, patterns, 0.5)

    with hung(tmp_path / "c" / "a.toml"), pytest.raises(SettingsError) as raised:
        load(config, {}, read_included=briefly)
    assert raised.value.problems == [
        "include: c/*.toml: not read within 0.5 s; the file system does not answer",
    ]
    assert raised.value.absent
    assert names(load(config, {}, read_included=apart)) == ["a"]


def test_lists_are_appended_to_those_of_the_file(tmp_path: Path) -> None:
    listener = '[[listeners]]\nname = "{}"\nbind = ["127.0.0.1:{}"]\nupstream = ["hub.example:1"]\n'
    config = folder(
        tmp_path,
        {"c/2.toml": customer("c") + listener.format("two", 2), "c/1.toml": customer("b")},
        'include = ["c/*.toml"]\n' + listener.format("one", 1) + customer("a"),
    )
    settings = load(config, {})
    assert names(settings) == ["a", "b", "c"]
    assert [item.name for item in settings.listeners] == ["one", "two"]
    again = tmp_path / "again.toml"
    again.write_text(render(settings))
    assert load(again, {}) == settings, "`relay config` shows all of it in one file"


def test_routes_may_be_included_and_mistakes_in_them_name_their_file(tmp_path: Path) -> None:
    route = '[[routes]]\nname = "{0}"\nsni = ["{0}.example"]\nupstream = ["{0}.example"]\n'
    config = folder(tmp_path, {"c/1.toml": route.format("b")}, MAIN + route.format("a"))
    for listener in load(config, {}).listeners:
        assert [item.name for item in listener.routes] == ["a", "b"]
    (tmp_path / "c" / "2.toml").write_text("\n" + route.format("b"))
    assert mistakes(config) == [
        'routes[2].name (c/2.toml line 2): "b" is also the name of routes[1] (c/1.toml line 1); names are unique among '
        "the routes of a listener",
        'routes[2] (c/2.toml line 2) ("b"): is never taken, since routes[1] (c/1.toml line 1) ("b"), written before '
        "it, has all of its names: write it further up, or take it out",
    ]
    (tmp_path / "c" / "2.toml").write_text(
        '[[listeners]]\nname = "l"\nbind = ["127.0.0.1:1"]\nupstream = ["h.example:1"]\n'
    )
    assert "upstream and listeners: both given" in mistakes(config)[0]


def test_customers_may_use_the_listeners_of_routes_alone(tmp_path: Path) -> None:
    route = '[[routes]]\nname = "a"\nsni = ["a.example"]\nupstream = ["a.example"]\n'
    config = folder(tmp_path, {"c/1.toml": customer("a") + 'listeners = ["mqtt"]\n'}, 'include = ["c/*"]\n' + route)
    assert load(config, {}).customers[0].listeners == ("mqtt",)


def test_the_environment_may_say_what_is_included(tmp_path: Path) -> None:
    config = folder(tmp_path, {"c/a.toml": customer("a"), "d.toml": customer("d")})
    assert names(load(config, {"RELAY_INCLUDE": "d.toml"})) == ["d"]
    assert names(load(config, {"RELAY_INCLUDE": ""})) == []
    assert names(load(config, {"RELAY_CUSTOMERS": '[{"name": "e"}]'})) == ["e"], "it replaces all of the files"
    with pytest.raises(SettingsError, match="include: without --config there is no file"):
        load(None, {"RELAY_INCLUDE": "d.toml", "RELAY_UPSTREAM": "hub.example"})


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("workers = 1\n", "workers: only [[customers]], [[routes]], [[listeners]] may be in an included file"),
        ("include = []\n", "include: only [[customers]], [[routes]], [[listeners]] may be in an included file"),
        ("[customers]\n", "customers: a table is not a list of tables; write [[customers]] before each"),
        ("customers = 1\n", "customers: 1 is not a list of tables; write [[customers]] before each"),
        ("[[customers]\n", "line 1, column 12: Expected ']]' at the end of an array declaration"),
        ('name = "\xff"', "line 1, column 9: not UTF-8"),
    ],
)
def test_what_may_be_in_an_included_file(tmp_path: Path, text: str, problem: str) -> None:
    config = folder(tmp_path, {"c/a.toml": ""})
    (tmp_path / "c" / "a.toml").write_bytes(text.encode("latin-1"))
    assert mistakes(config) == [f"include: c/a.toml: {problem}"]


def test_an_empty_file_adds_nothing(tmp_path: Path) -> None:
    assert names(load(folder(tmp_path, {"c/a.toml": "", "c/b.toml": customer("b")}), {})) == ["b"]


def test_a_pattern_without_a_match_is_a_mistake(tmp_path: Path) -> None:
    config = folder(tmp_path, {"c/.a.toml": "", "c/b.toml~": ""})
    assert mistakes(config) == ["include: c/*.toml: matches no file"]
    with pytest.raises(SettingsError) as raised:
        load(config, {})
    assert not raised.value.absent, "the settings are wrong, not the machine"


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('include = "c/*.toml"', 'include: "c/*.toml" is not a list of strings; '),
        ("include = [1]", "include[0]: 1 is not a string; write it in quotes"),
    ],
)
def test_include_is_a_list_of_patterns(tmp_path: Path, line: str, problem: str) -> None:
    (found,) = mistakes(folder(tmp_path, {}, f'upstream = ["hub.example"]\n{line}\n'))
    assert found.startswith(problem)


def test_a_mistake_in_a_value_names_file_and_line(tmp_path: Path) -> None:
    config = folder(
        tmp_path,
        {"c/a.toml": "\n" + customer("a") + 'networks = ["10.0.0.1",\n "10.0.0.300"]\n', "c/b.toml": customer("B")},
    )
    assert mistakes(config) == [
        'customers[0].networks[1] (c/a.toml line 5): "10.0.0.300" is neither a network like 10.0.0.0/8 or '
        "2001:db8::/32 nor an address",
        'customers[1].name (c/b.toml line 2): "B" is not 1 to 64 of a-z, 0-9, -, _ and .; name in logs, metrics and '
        "status, unique among the customers: 1 to 64 characters of a-z, 0-9, -, _ and .",
    ]


@pytest.mark.parametrize(
    "text",
    [
        'customers = [{name = "a"}, {name = "a"}]\n',
        '[[customers]]\nname = "a"\n[[customers]]\nname = "a"\nnetworks = ["""\n[[customers]]\n"""]\n',
    ],
)
def test_where_the_line_is_not_certain_the_file_is_named(tmp_path: Path, text: str) -> None:
    found = mistakes(folder(tmp_path, {"c/a.toml": text}))
    assert (
        'customers[1].name (c/a.toml): "a" is also the name of customers[0].name (c/a.toml); names are unique' in found
    )


def test_a_file_that_has_only_an_include_sets_something(tmp_path: Path) -> None:
    config = folder(tmp_path, {"c/a.toml": customer("a")}, 'include = ["c/*.toml"]\n')
    assert mistakes(config)[0].startswith("upstream: not set, so there is nothing to relay to")


@both
def test_a_pattern_that_no_file_can_have(tmp_path: Path, reading: Reading) -> None:
    assert reading(tmp_path, ["a\0b"]) == [Included("a\0b", b"", "matches no file")]
