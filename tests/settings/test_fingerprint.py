"""Equal settings have equal hashes, wherever they come from; others have others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from relay.settings.fingerprint import DIGITS, fingerprint
from relay.settings.model import Settings, load

Load = Callable[..., Settings]
SHORT = 'upstream = ["hub.example"]\n'
CUSTOMER = '[[customers]]\nname = "c"\n'


def test_the_spelling_does_not_matter(load_text: Load, tmp_path: Path) -> None:
    path = tmp_path / "relay.toml"
    path.write_text(SHORT)
    expected = fingerprint(load_text(SHORT + "[timeouts]\nidle = 900.0\n"))
    assert len(expected) == DIGITS
    for other in (
        load_text("# a comment\n" + SHORT.replace("hub", "HUB") + "timeouts.idle = 900.0\n"),
        load_text(SHORT + "workers = 0\n[timeouts]\nidle = 900.0\n[limits]\nmax_connections = 0\n"),  # defaults
        load(path, {"RELAY_TIMEOUTS__IDLE": "900"}),
    ):
        assert fingerprint(other) == expected


def test_every_difference_matters(load_text: Load) -> None:
    texts = [SHORT, SHORT + "workers = 2\n", SHORT + "[timeouts]\nidle = 900.0\n", SHORT.replace("hub", "bus"),
             SHORT + '[access]\nallow = ["10.0.0.0/8"]\n', SHORT + '[access]\ndeny = ["10.0.0.0/8"]\n',
             SHORT + CUSTOMER, SHORT + CUSTOMER + "max_connections = 1\n",
             SHORT + CUSTOMER + CUSTOMER.replace('"c"', '"d"')]  # fmt: skip
    assert len({fingerprint(load_text(text)) for text in texts}) == len(texts)
