"""An ICMP "host unreachable" says that a packet was lost, not a connection: TCP tries again, so the relay waits."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.programs import ROOT, launched
from tests.reg.upstreams.test_sources import NAMESPACE, needs_namespace

needs_nft = pytest.mark.skipif(shutil.which("nft") is None, reason="nft (nftables) is not installed")


@needs_namespace
@needs_nft
def test_a_connection_outlives_a_route_that_is_gone_for_a_while(tmp_path: Path, engine: str) -> None:
    unshare = [shutil.which("unshare") or "unshare", *NAMESPACE, "sh", "-c", 'ip link set lo up && exec "$0" "$@"']
    done = subprocess.run(
        launched([*unshare, sys.executable, "-m", "tests.reg.traffic.unreachable", str(tmp_path), engine]),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=55,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
