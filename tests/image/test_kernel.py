"""The image on its own kernel, Ubuntu's, in QEMU: kernel settings, modules, descriptor limits, io_uring."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from tests.image.conftest import Baked, layer, unlayer
from tests.image.guest import Guest
from tests.image.test_boot import checks

pytestmark = [
    pytest.mark.image,
    pytest.mark.timeout(3000),
    pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="qemu-system-x86_64 is not installed"),
    pytest.mark.skipif(shutil.which("mke2fs") is None, reason="mke2fs (e2fsprogs) is not installed"),
]


def test_every_check_passes_on_the_image_s_own_kernel(
    baked: Baked, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "layer").mkdir()
    root = layer(baked("relay"), tmp_path / "layer")
    try:
        guest = Guest(root, tmp_path)
    finally:
        unlayer(root)
    with guest:
        said = checks(guest.spec, "relay", "--kernel", "-o", "timeout=900")
    with capsys.disabled():
        sys.stdout.write(f"\nQEMU: {said.strip().splitlines()[-1]}\n")
