"""Who may connect to one listener: its own lists in place of the instance's, whose `deny` always holds."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.clients import connect, exchange, refused
from tests.support.harness import Start
from tests.support.programs import command
from tests.support.relay_toml import listener, settings
from tests.support.upstreams import Echo

INSTANCE = '[access]\nallow = ["127.0.0.1", "127.0.0.9"]\ndeny = ["127.0.0.9"]\n'
SOURCES = ("127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.9")


def admitted(address: tuple[str, int]) -> set[str]:
    """The sources that get an echo; the others see a reset."""
    found = set()
    for source in SOURCES:
        try:
            with connect(address, source) as client:
                if exchange(client) == b"ping":
                    found.add(source)
        except ConnectionResetError:
            pass
    return found


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ("", {"127.0.0.1"}),
        ("allow = []", {"127.0.0.1", "127.0.0.2", "127.0.0.3"}),
        ('allow = ["127.0.0.2", "127.0.0.9"]', {"127.0.0.2"}),
        ('allow = ["127.0.0.0/8"]\ndeny = ["127.0.0.2"]', {"127.0.0.1", "127.0.0.3"}),
        ('deny = ["127.0.0.1"]', set()),
        ("deny = []", {"127.0.0.1"}),
    ],
    ids=["inherited", "everybody", "others", "without some", "nobody is left", "deny nothing further"],
)
def test_keys_given_replace_and_the_instances_deny_holds(
    echo: Echo, start: Start, own: str, expected: set[str]
) -> None:
    more = f"[listeners.access]\n{own}\n" if own else ""
    relay = start(
        settings(listener(echo.address, more=more), listener(echo.address, name="other"), workers=2, tables=INSTANCE)
    )
    assert admitted(relay.address()) == expected
    assert admitted(relay.address("other")) == {"127.0.0.1"}, "the instance's"
    outcomes = {item["name"]: item["outcomes"] for item in relay.wait_active(0)["listeners"]}
    refusals = len(SOURCES) - len(expected)
    assert outcomes["main"] == {**({"ok": len(expected)} if expected else {}), "refused_access": refusals}


def test_with_customers_an_empty_list_of_the_listener_lets_nobody_else_in(echo: Echo, start: Start) -> None:
    customers = '[[customers]]\nname = "c"\nnetworks = ["127.0.0.2"]\n'
    relay = start(
        settings(
            listener(echo.address, more="[listeners.access]\nallow = []\n"),
            listener(echo.address, name="other"),
            tables=INSTANCE + customers,
        )
    )
    assert admitted(relay.address()) == {"127.0.0.2"}
    assert admitted(relay.address("other")) == {"127.0.0.1", "127.0.0.2"}


def test_a_reload_changes_them_and_says_what_it_opens(echo: Echo, start: Start) -> None:
    closed = settings(listener(echo.address, more='[listeners.access]\nallow = ["127.0.0.2"]\n'))
    relay = start(closed)
    with connect(relay.address(), "127.0.0.2") as client:
        assert exchange(client) == b"ping"
        assert refused(relay.address())
        relay.config.write_text(settings(listener(echo.address)))
        assert relay.post("/reload") == (200, "ok\n")
        assert admitted(relay.address()) == set(SOURCES)
        assert relay.told("access restrictions removed")[0]["settings"] == ["listeners.main.access.allow"]
        assert exchange(client) == b"ping"


def test_check_says_what_a_listeners_own_list_decides(echo: Echo, tmp_path: Path) -> None:
    path = tmp_path / "relay.toml"
    own = '[listeners.access]\nallow = ["127.0.0.2", "127.0.0.9"]\n'
    path.write_text(settings(listener(echo.address, more=own), listener(echo.address, name="other"), tables=INSTANCE))
    for client, refusing in (("127.0.0.1", ["main"]), ("127.0.0.2", ["other"]), ("127.0.0.9", ["main", "other"])):
        result = command("check", "--config", path, "--client", client)
        refused_by = [line.split()[1].rstrip(":") for line in result.stdout.splitlines() if "refused_access" in line]
        assert refused_by == refusing, result.stdout + result.stderr
