"""`relay --help` and the help of each command."""

from __future__ import annotations

import pytest

from relay.cli import COMMANDS, _parser

WIDTH = 80  # columns of the narrowest terminal that is likely


def help_of(command: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        _parser().parse_args([*command, "--help"])
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_the_help_names_every_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    lines = help_of([], capsys).splitlines()
    assert all(any(line.split()[:1] == [command] for line in lines) for command in COMMANDS)
    assert any(line.startswith("exit status:") for line in lines)


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)], ids=" ".join)
def test_help_is_not_wrapped_by_a_narrow_terminal(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    text = help_of(command, capsys)
    assert [line for line in text.splitlines() if len(line) > WIDTH] == []
    assert len(text.splitlines()) > 5
