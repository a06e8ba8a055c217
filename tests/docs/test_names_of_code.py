"""The files, functions and layers that the pages name are those of the code."""

from __future__ import annotations

import ast
import re
import tomllib
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

from tests.docs.blocks import FENCED, PAGES, blocks
from tests.support.programs import ROOT

PAGE = ROOT / "ARCHITECTURE.md"
FOLDERS = ("relay", "bench", "scripts", "tests")
PATH = re.compile(r"(?:relay|bench|scripts|tests|deploy|docs|requirements)/[\w./-]*")
MODULE = re.compile(r"[\w/]+\.py")
SPAN = re.compile(r"`([^`\n]+)`")


@cache
def modules() -> frozenset[str]:
    """Every Python file of the repository, as a path from its root."""
    return frozenset(str(file.relative_to(ROOT)) for folder in FOLDERS for file in (ROOT / folder).rglob("*.py"))


def defined(file: str) -> set[str]:
    """What a module defines: `name`, and `Class.member` for what stands in a class."""
    names: set[str] = set()

    def collect(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                names.add(prefix + node.name)
                if isinstance(node, ast.ClassDef):
                    collect(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names.update(prefix + target.id for target in targets if isinstance(target, ast.Name))

    collect(ast.parse((ROOT / file).read_text()).body, "")
    return names


def places() -> list[tuple[list[str], list[str]]]:
    """The rows of "Where is …?": files, and names in them."""
    table = PAGE.read_text().partition("## Where is …?\n")[2].partition("\n## ")[0]
    rows = [line.split(" | ") for line in table.strip().splitlines()[2:]]
    return [(SPAN.findall(files), SPAN.findall(names)) for _, files, names in rows]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_and_folders_exist(page: Path) -> None:
    for span in SPAN.findall(FENCED.sub("", page.read_text())):
        if PATH.fullmatch(span):
            assert (ROOT / span).exists(), span
        elif MODULE.fullmatch(span):
            assert any(f"/{module}".endswith(f"/{span}") for module in modules()), span


def test_there_is_a_place_for_each_question() -> None:
    assert len(places()) >= 20
    assert all(files and names for files, names in places())


@pytest.mark.parametrize(("files", "names"), places(), ids=", ".join)
def test_the_place_that_is_named_is_there(files: list[str], names: list[str]) -> None:
    for name in names:
        assert any(name in defined(file) for file in files), f"{name} is not in {', '.join(files)}"
    for file in files:
        assert any(name in defined(file) for name in names), f"nothing that is named is in {file}"


CLASS = re.compile(r"[A-Z][a-z]\w*(?:\.\w+)?")
CONSTANT = re.compile(r"_?[A-Z]{3,}(?:_[A-Z]+)*")
NOT_OURS = {"SOCK_SEQPACKET"}


@pytest.mark.parametrize(("page", "least"), [("ARCHITECTURE.md", 20), ("CONTRIBUTING.md", 10)])
def test_classes_members_and_constants_are_defined(page: str, least: int) -> None:
    known = {name for module in modules() if module.startswith(("relay/", "tests/")) for name in defined(module)}
    spans = set(SPAN.findall(FENCED.sub("", (ROOT / page).read_text())))
    named = {span for span in spans if CLASS.fullmatch(span) or CONSTANT.fullmatch(span)} - NOT_OURS
    assert len(named) >= least
    assert named <= known


def house() -> dict[str, str]:
    """The house's picture: path of each folder → what stands beside it; "" is the line of the top modules."""
    (text,) = [block.text for block in blocks() if block.page == PAGE.name and block.text.startswith("relay/  ")]
    found: dict[str, str] = {}
    above: list[tuple[int, str]] = []
    for line in text.splitlines():
        indent, name = len(line) - len(line.lstrip()), line.split()[0]
        if not name.endswith("/"):
            continue
        above = [(depth, folder) for depth, folder in above if depth < indent]
        path = "".join(folder for _, folder in above) + name
        found[path] = line.split(None, 1)[1]
        above.append((indent, name))
    return found


def test_the_house_has_every_package_and_no_other() -> None:
    packages = {str(file.parent.relative_to(ROOT)) + "/" for file in (ROOT / "relay").rglob("__init__.py")}
    assert {path for path in house() if path.startswith("relay/")} == packages


def test_the_folders_of_the_house_exist() -> None:
    for path in house():
        assert (ROOT / path).is_dir(), path


def test_the_house_has_every_module_that_is_in_no_package() -> None:
    (text,) = [block.text for block in blocks() if block.page == PAGE.name and block.text.startswith("relay/  ")]
    modules_named = set(re.findall(r"\b\w+\.py\b", text))
    assert {file.name for file in (ROOT / "relay").glob("*.py")} - {"__init__.py"} <= modules_named
    for name in modules_named:
        assert any(module.endswith(f"/{name}") for module in modules()), name


def layers() -> list[str]:
    """The layers of `relay` from the top; modules of one layer are not told apart."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (contract,) = [contract for contract in contracts if contract["id"] == "layers"]
    return list(contract["layers"])


def test_the_drawing_of_the_layers_is_that_of_the_contract() -> None:
    (text,) = [block.text for block in blocks() if block.page == PAGE.name and "flowchart TD" in block.text]
    level = {name: place for place, layer in enumerate(layers()) for name in re.findall(r"\w+", layer)}
    labels = dict(re.findall(r'(\w+)\["(.*?)"\]', text))
    text = re.sub(r'\["(.*?)"\]', "", text)
    drawn: set[str] = set()
    for line in text.splitlines()[1:]:
        chain = [re.findall(r"\w+", str(labels.get(node, node))) for node in re.split(r" (?:-->|~~~) ", line.strip())]
        drawn.update(name for names in chain for name in names)
        for upper, lower in pairwise(chain):
            assert all(level[one] < level[other] for one in upper for other in lower), line
    assert drawn == set(level)
