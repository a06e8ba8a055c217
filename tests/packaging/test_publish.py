"""packer/publish.sh against a stand-in for `az` that records what it is asked: what is done in which order, and what is
not done with a version that fails. No command of Azure's is run.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.support.programs import ROOT

ARGUMENTS = ["images", "relay", "relay-amd64", "1.2.3", "westeurope", "Standard_D2as_v5"]
READY = "ok\nIMAGE=relay\nIMAGE_VERSION=1.2.3\nIMAGE-READY\n"
AZ = """\
#!/bin/sh
echo "$*" | head -n 1 >>"$ASKED"
case "$*" in
"sig image-version show"*) echo /subscriptions/x/versions/1.2.3 ;;
"vm create"*) exit "$CREATE" ;;
"vm run-command"*) cat "$SAID" ;;
esac
"""


def publish(
    folder: Path, said: str = READY, create: int = 0, data: str = 'upstream = ["hub.example"]\n'
) -> tuple[int, list[str]]:
    """Exit status, and what az was asked."""
    (folder / "az").write_text(AZ)
    (folder / "az").chmod(0o755)
    (folder / "said").write_text(said)
    (folder / "relay.toml").write_text(data)
    asked = folder / "asked"
    asked.touch()
    environment = {
        **os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "ASKED": str(asked), "SAID": str(folder / "said"),
        "CREATE": str(create),
    }  # fmt: skip
    line = [str(ROOT / "packer/publish.sh"), *ARGUMENTS, str(folder / "relay.toml")]
    done = subprocess.run(line, env=environment, capture_output=True, text=True)
    return done.returncode, asked.read_text().splitlines()


def test_a_version_that_is_ready_becomes_the_latest_and_the_machine_goes(tmp_path: Path) -> None:
    status, asked = publish(tmp_path)
    assert status == 0
    assert [" ".join(line.split()[:2]) for line in asked] == [
        "sig image-version", "group create", "vm create", "vm run-command", "sig image-version", "group delete",
    ]  # fmt: skip
    assert "--public-ip-address" in asked[2]
    assert "--security-type TrustedLaunch" in asked[2]
    assert asked[4].endswith("--set publishingProfile.excludeFromLatest=false --output none")


@pytest.mark.parametrize(
    ("said", "create"),
    [
        ("connection refused\nIMAGE_VERSION=1.2.3\n", 0),
        (READY.replace("1.2.3", "1.2.2"), 0),
        (READY, 1),
    ],
)
def test_a_version_that_is_not_stays_excluded_and_the_machine_goes(tmp_path: Path, said: str, create: int) -> None:
    status, asked = publish(tmp_path, said, create)
    assert status == 1
    assert not [line for line in asked if "excludeFromLatest" in line]
    assert asked[-1].startswith("group delete")


def test_without_user_data_nothing_is_asked(tmp_path: Path) -> None:
    assert publish(tmp_path, data="") == (2, [])
