"""Code blocks of the pages: settings are loaded, and commands parsed, as they stand there."""

from __future__ import annotations

import re
import shlex
from typing import NamedTuple

from tests.support.programs import ROOT

AT_THE_TOP = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md")
PAGES = sorted([*(ROOT / name for name in AT_THE_TOP), *(ROOT / "docs").rglob("*.md")])
PROGRAMS = ("relay", "make", "curl", "openssl", "kill", "tail", "pip", "docker", "systemctl", "journalctl", "sh", "apt")
ENVIRONMENT = ".venv/bin/"
FENCED = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?:(?<=\n\n)|\A)((?: {4}.*\n|\n(?= {4}))+)")
_INLINE = re.compile(r"`([^`\n]+)`")
_VARIABLE = re.compile(r"[A-Z][A-Z0-9_]*=")


class Block(NamedTuple):
    """A block of a page, as it is when what all its lines are indented by is taken off."""

    page: str
    language: str  # of a fenced one
    text: str


class Command(NamedTuple):
    """A command line of a page."""

    page: str
    line: str

    @property
    def words(self) -> list[str]:
        """Its words, without variables before it; redirections are words too."""
        words = shlex.split(self.line, comments=True)
        while words and _VARIABLE.match(words[0]):
            words.pop(0)
        return [words[0].removeprefix(ENVIRONMENT), *words[1:]]

    @property
    def variables(self) -> dict[str, str]:
        """What is set for it."""
        given = {}
        for word in shlex.split(self.line, comments=True):
            if not _VARIABLE.match(word):
                break
            name, _, value = word.partition("=")
            given[name] = value
        return given


def _undented(text: str) -> str:
    lines = text.strip("\n").splitlines()
    indent = min(len(line) - len(line.lstrip()) for line in lines if line.strip())
    return "".join(f"{line[indent:]}\n" for line in lines)


def blocks() -> list[Block]:
    """Every block of every page."""
    found = []
    for page in PAGES:
        name, text = str(page.relative_to(ROOT)), page.read_text()
        found += [Block(name, match[2], _undented(match[3])) for match in FENCED.finditer(text)]
        found += [Block(name, "", _undented(match[1])) for match in _INDENTED.finditer(FENCED.sub("", text))]
    return found


def settings() -> list[Block]:
    """Blocks of relay's settings; an indented one begins with a table's name."""
    return [block for block in blocks() if block.language == "toml" or re.match(r"\[\[?[a-z_]+\]\]?\n", block.text)]


def commands() -> list[Command]:
    """Command lines in blocks; where there is a prompt, only what stands behind one."""
    found = []
    for block in blocks():
        if block.language not in ("", "sh"):
            continue
        lines = re.sub(r"\\\n\s*", "", block.text).splitlines()  # a line that goes on is one command
        if any(line.startswith("$ ") for line in lines):
            lines = [line[2:] for line in lines if line.startswith("$ ")]
        for line in lines:
            first = re.sub(r"^(?:[A-Z][A-Z0-9_]*=\S* )*", "", line).partition(" ")[0]
            if first.removeprefix(ENVIRONMENT) in PROGRAMS:
                found.append(Command(block.page, line))
    return found


def spans() -> list[Command]:
    """Commands within sentences."""
    found = []
    for page in PAGES:
        text = _INDENTED.sub("", FENCED.sub("", page.read_text()))
        lines = [span for span in _INLINE.findall(text) if span.partition(" ")[0] in PROGRAMS and " " in span]
        found += [Command(str(page.relative_to(ROOT)), line) for line in lines]
    return found
