"""The search list of /etc/resolv.conf, which only a namespace lets a test change: beside libc, and in a relay."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.namespace import inside, needs_mounts

EXAMPLES = 40  # a process each, beside whatever else the machine has to do
DEVIATIONS = {"complete", "family"}  # on purpose; `beside_libc` says what they are


def files(directory: Path) -> str:
    """Shell: the system's files that name look-ups read, replaced by those of the test."""
    texts = {"resolv.conf": "", "nsswitch.conf": "hosts: files dns\n", "hosts": "127.0.0.1 localhost\n"}
    for name, text in texts.items():
        (directory / name).write_text(text)
    return " && ".join(f"mount --bind {directory}/{name} /etc/{name}" for name in texts)


@needs_mounts
def test_look_ups_are_those_of_the_c_library_but_for_what_is_meant_to_differ(tmp_path: Path) -> None:
    if not Path("/etc/resolv.conf").exists() or not Path("/etc/nsswitch.conf").exists():
        pytest.skip("no /etc/resolv.conf or nsswitch.conf to put another in the place of")
    printed = inside("tests.e2e.upstreams.beside_libc", EXAMPLES, prepare=files(tmp_path), mounts=True)
    seen = json.loads(printed.splitlines()[-1])
    assert seen.pop("examples") >= EXAMPLES
    assert set(seen) <= DEVIATIONS


@needs_mounts
@pytest.mark.parametrize("scenario", ["failing", "empty", "wildcard", "family", "dot"])
def test_a_search_domain_gone_bad_takes_nothing_away_and_nothing_s_place(
    tmp_path: Path, scenario: str, engine: str
) -> None:
    inside("tests.e2e.upstreams.searching", scenario, tmp_path, engine, prepare=files(tmp_path), mounts=True)
