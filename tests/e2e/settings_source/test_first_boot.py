"""A machine that never had valid settings: Unhealthy with the reason on the health port, until it has some."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.settings_source.fetching import FETCHED, LONG, Fleet
from tests.support.metadata_server import Answer
from tests.support.observe import wait_until

pytestmark = pytest.mark.timeout(LONG)

Json = dict[str, Any]


@contextlib.contextmanager
def waiting(fleet: Fleet) -> Iterator[subprocess.Popen[str]]:
    """`relay fetch-settings --service` as a first boot runs it."""
    health = {"RELAY_HEALTH__BIND": f"127.0.0.1:{fleet.health}"}
    fleet.environ |= health
    one = fleet.begin("--service")
    try:
        yield one
    finally:
        one.kill()
        one.communicate()


def get(fleet: Fleet, path: str) -> tuple[int, str]:
    """An answer of the health port; status 0 if there is none."""
    try:
        connection = http.client.HTTPConnection("127.0.0.1", fleet.health, timeout=10)
        with contextlib.closing(connection):
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
    except OSError:
        return 0, ""


def wait_reason(fleet: Fleet, reason: str) -> None:
    """Until the machine is Unhealthy for that reason."""

    def look() -> bool:
        status, text = get(fleet, "/healthz")
        if status != 200:
            return False
        body: Json = json.loads(text)
        assert body["ApplicationHealthState"] == "Unhealthy"
        return reason in body["settings_source"]["error"]

    wait_until(look, 30, lambda: f"{reason}: {get(fleet, '/healthz')}")


def test_it_says_why_until_there_are_settings_and_then_gives_the_port_up(fleet: Fleet) -> None:
    fleet.metadata.user_data.play(Answer(status=500))
    with waiting(fleet) as one:
        wait_reason(fleet, "HTTP status 500")
        assert get(fleet, "/livez") == (200, "ok\n")
        status, text = get(fleet, "/readyz")
        assert status == 503
        assert text.startswith("no valid settings yet: metadata service")
        assert get(fleet, "/status")[0] == 404
        fleet.metadata.publish("upstream: hub\n")
        wait_reason(fleet, "not TOML")
        fleet.metadata.publish(text := fleet.toml())
        out, err = one.communicate(timeout=FETCHED)
        assert one.returncode == 0
        assert fleet.config.read_text() == text
        with socket.create_server(("127.0.0.1", fleet.health)):
            pass
        assert "written" in out
        said = err.splitlines()
        assert len(said) == len(set(said)) == 2, said  # each reason once, however often it was tried


def test_a_service_that_is_not_there_or_silent_is_tried_again(fleet: Fleet) -> None:
    fleet.metadata.close()
    with waiting(fleet) as one:
        wait_reason(fleet, "connection refused")
        fleet.metadata.user_data.play(Answer(hang=True))
        fleet.metadata.open()
        wait_reason(fleet, "no answer")
        assert get(fleet, "/livez")[0] == 200  # while a call hangs
        fleet.metadata.publish(fleet.toml())
        one.communicate(timeout=FETCHED)
        assert one.returncode == 0


def test_settings_that_another_program_writes_end_the_wait(fleet: Fleet) -> None:
    """As cloud-init does."""
    with waiting(fleet) as one:
        wait_reason(fleet, "user data: empty")
        fleet.config.write_text(fleet.toml())
        one.communicate(timeout=FETCHED)
        assert one.returncode == 2  # the user data is still no settings
        assert fleet.report()["up"] is False


def test_a_file_without_an_upstream_is_no_settings(fleet: Fleet) -> None:
    """As the packages install it."""
    fleet.config.write_text("# upstream = []\n")
    with waiting(fleet):
        wait_reason(fleet, "user data: empty")


def test_a_machine_that_has_settings_does_not_wait(fleet: Fleet) -> None:
    fleet.good()
    fleet.metadata.publish("")
    done = fleet.fetch("--service")
    assert done.returncode == 2
    assert "user data: empty" in done.stderr
    done = fleet.fetch("--service")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")  # said once


def test_a_health_port_that_is_taken_stops_nothing(fleet: Fleet) -> None:
    with socket.create_server(("127.0.0.1", fleet.health)), waiting(fleet) as one:
        wait_until(lambda: len(fleet.metadata.user_data.requests) > 1, 30)
        fleet.metadata.publish(fleet.toml())
        _, err = one.communicate(timeout=FETCHED)
        assert one.returncode == 0
        assert "health.bind" in err
