"""The rules of docs/how-to/more-than-64000-devices.md, as they stand there, keep relay's connections untracked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from relay.settings.model import SHORTHAND_PORTS
from tests.docs.blocks import FENCED
from tests.support.namespace import inside, needs_namespace, needs_nft
from tests.support.programs import ROOT

PAGE = ROOT / "docs/how-to/more-than-64000-devices.md"
COUNT = Path("/proc/sys/net/netfilter/nf_conntrack_count")


@needs_nft
@needs_namespace
@pytest.mark.skipif(not COUNT.exists(), reason="this kernel has no connection tracking")
def test_the_ports_of_the_short_form_are_not_tracked() -> None:
    (rules,) = (match[3] for match in FENCED.finditer(PAGE.read_text()) if match[2] == "nft")
    ports = sorted(SHORTHAND_PORTS.values())
    before, after, other = json.loads(inside("tests.docs.untracked", rules, *ports))
    assert before == [1] * len(ports)
    assert after == [0] * len(ports)
    assert other == 1
