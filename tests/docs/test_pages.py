"""What the pages say can be done as it stands: settings load, commands parse, samples are what they look like."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]

from relay.cli import _parser
from relay.core import user_data
from relay.settings import model
from tests.docs import blocks
from tests.docs.blocks import PAGES, Block, Command
from tests.support.programs import ROOT

COMMANDS = [*blocks.commands(), *blocks.spans()]
NEED_SETTINGS = ("run", "check")


def named(item: Block | Command) -> str:
    return f"{item.page}: {item[-1].splitlines()[0]}"


def of(program: str) -> list[Command]:
    return [command for command in COMMANDS if command.words[:1] == [program]]


@pytest.mark.parametrize("block", blocks.settings(), ids=named)
def test_settings_load(block: Block, tmp_path: Path) -> None:
    file = tmp_path / "relay.toml"
    text = block.text.encode()
    if b"[settings_source]" in text:  # of user data; `relay fetch-settings` takes it out
        document = user_data.split(text)
        text = document.settings
        assert document.source.blob or text
    file.write_bytes(text)
    model.load(file, {}, require_listeners=False)


def test_there_are_settings_and_commands_at_all() -> None:
    assert len(blocks.settings()) >= 10
    assert len(of("relay")) >= 20
    assert len(of("make")) >= 10
    assert len(of("curl")) >= 3
    assert len(of("openssl")) >= 3


PROCESSES = ("PID", "$MAINPID")  # stand for the number of a process
NAMES = ("fetch-settings",)  # needs arguments; in a sentence its name alone may stand


@pytest.mark.parametrize("command", of("relay"), ids=named)
def test_commands_of_relay_parse(command: Command) -> None:
    words = ["1" if word in PROCESSES else word for word in command.words[1:]]
    if command not in blocks.commands() and words in [[name] for name in NAMES]:
        words.append("--help")
    try:
        options = _parser().parse_args(words)
    except SystemExit as end:
        if end.code == 0:  # --version, --help
            return
        pytest.fail(f"{command.line}: exit status {end.code}")
    if command in blocks.commands() and options.command in NEED_SETTINGS:
        given = options.config is not None or "RELAY_UPSTREAM" in command.variables
        assert given, "it would say that there is nothing to listen on"


MAKEFILE = (ROOT / "Makefile").read_text()


@pytest.mark.parametrize("command", of("make"), ids=named)
def test_make_has_the_target_and_its_program_the_arguments(command: Command) -> None:
    target, *rest = command.words[1:]
    recipe = re.search(rf"^{target}:[^\n]*\n((?:\t[^\n]*\n)+)", MAKEFILE, re.MULTILINE)
    assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE), target
    for word in rest:
        name, _, value = word.partition("=")
        assert name in ("ARGS", "PYTHON", "FUZZ_EXAMPLES", "VERSION"), word
        if name != "ARGS" or target == "test":
            continue
        assert recipe
        module = re.search(r"-m ([\w.]+)", recipe[1])
        program = [sys.executable, "-m", *([module[1]] if module else ["relay", target])]
        help_text = subprocess.run([*program, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=50).stdout
        for option in re.findall(r"--[a-z-]+", value):
            assert option in help_text, (option, help_text)


def test_nobody_is_told_to_install_a_stranger_s_package() -> None:
    """PyPI's `relay` is not this one."""
    said = [*PAGES, *(ROOT / "relay").rglob("*.py"), *(ROOT / "deploy").rglob("*.*")]
    for file in said:
        for line in file.read_text().splitlines():
            assert not re.search(r"pip install +(?:-\S+ +)*['\"]?relay\b", line), f"{file}: {line}"


@pytest.mark.parametrize("block", [block for block in blocks.blocks() if block.language == "json"], ids=named)
def test_sample_lines_of_the_log_are_json(block: Block) -> None:
    assert json.loads(block.text)["event"]


CLOUD_CONFIG = "#cloud-config\n"
YAML = [block for block in blocks.blocks() if block.language == "yaml"]


@pytest.mark.parametrize("block", [block for block in YAML if block.text.startswith(CLOUD_CONFIG)], ids=named)
def test_settings_that_cloud_init_writes_load(block: Block, tmp_path: Path) -> None:
    (file,) = yaml.safe_load(block.text)["write_files"]
    assert (file["path"], file["permissions"]) == ("/etc/relay/relay.toml", "0644")
    (tmp_path / "relay.toml").write_text(file["content"])
    model.load(tmp_path / "relay.toml", {})


@pytest.mark.parametrize("block", [block for block in YAML if not block.text.startswith(CLOUD_CONFIG)], ids=named)
def test_prometheus_takes_its_configuration(block: Block, tmp_path: Path) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("no promtool (make deps installs it)")
    (tmp_path / "prometheus.yml").write_text(block.text)
    shutil.copy(ROOT / "deploy/prometheus/relay.rules.yml", tmp_path)
    done = subprocess.run(
        ["promtool", "check", "config", "prometheus.yml"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        if "://" in target:
            continue
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), target
