"""Roots that packer/scripts have baked, once for a run, and machines that boot them."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from scripts.dist import version
from scripts.image import bake, gallery_version
from scripts.systemd_root import AZURE, Failed, provide
from scripts.systemd_root import cache as cache_folder
from tests.packaging.bare import need_sources
from tests.packaging.conftest import TOOLS
from tests.support.programs import ROOT


@pytest.fixture(scope="session")
def azure_root() -> Path:
    """What stands in for Ubuntu 24.04 on Azure; not to be changed."""
    if os.geteuid() != 0:
        pytest.skip("a virtual systemd machine needs root")
    if os.uname().machine != "x86_64":
        pytest.skip("Ubuntu's archive of roots is for x86-64 here")
    if missing := [package for tool, package in TOOLS.items() if shutil.which(tool) is None]:
        pytest.skip(f"no {', '.join(missing)} (make deps installs them)")
    try:
        return provide(AZURE)
    except Failed as error:
        pytest.skip(f"no root for a virtual systemd machine: {error}")


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the scripts need, as `python -m scripts.image files` gathers it."""
    folder = tmp_path_factory.mktemp("files")
    need_sources("image", folder)
    line = [sys.executable, "-m", "scripts.image", "files", "--arch", "x86_64", "--compress", "none"]
    wheels = (
        cache_folder() / f"image-wheels-{hashlib.sha256((ROOT / 'requirements/run.txt').read_bytes()).hexdigest()[:12]}"
    )
    done = subprocess.run(
        [*line, "--output", str(folder), "--wheels", str(wheels)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "x86_64"


def layer(below: Path, folder: Path) -> Path:
    """A root whose changes lie in `folder`, over one that stays as it is; faster than a copy."""
    for name in ("changes", "work", "root"):
        (folder / name).mkdir()
    options = f"lowerdir={below},upperdir={folder}/changes,workdir={folder}/work"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, str(folder / "root")], check=True)
    return folder / "root"


def unlayer(root: Path) -> None:
    """Remove such a root."""
    subprocess.run(["umount", "--lazy", str(root)], check=False)  # where the mount itself has failed there is none
    shutil.rmtree(root.parent, ignore_errors=True)


Baked = Callable[[str], Path]


@pytest.fixture(scope="session")
def baked(azure_root: Path, files: Path) -> Iterator[Baked]:
    """A root for relay or for HAProxy, with all scripts run in it; each is made once."""
    made: list[Path] = []

    @cache
    def make(image: str) -> Path:
        # Not in pytest's folders, which other runs on the same machine remove.
        root = layer(azure_root, Path(tempfile.mkdtemp(prefix=f"relay-image-{image}-")))
        made.append(root)
        try:
            bake(root, files, {"IMAGE": image, "IMAGE_VERSION": gallery_version(version())})
        except subprocess.CalledProcessError as error:
            pytest.fail(f"{error.cmd[-1]} ended with {error.returncode}:\n{error.stdout}")
        return root

    yield make
    for root in made:
        unlayer(root)
