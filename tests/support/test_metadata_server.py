"""The stand-in for Azure's metadata service: as strict as the real one, and controlled by HTTP as a process."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.metadata_server import COMPUTE, EVENTS, OWN, document, event
from tests.support.observe import PATIENCE
from tests.support.programs import ROOT, launched

REAL = {"Metadata": "true"}
VERSION = {EVENTS: "api-version=2020-07-01", COMPUTE: "api-version=2021-02-01"}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    line = launched([sys.executable, "-m", "tests.support.metadata_server", "0"])
    with subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


def ask(method: str, url: str, body: object = None, headers: dict[str, str] = REAL) -> tuple[int, Any]:
    data = json.dumps(body).encode() if body is not None else None
    request = urllib.request.Request(url, data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as response:
            return response.status, json.loads(response.read() or "null")
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read() or "null")


@pytest.mark.parametrize("path", [EVENTS, COMPUTE])
@pytest.mark.parametrize(
    ("headers", "query", "status"),
    [
        (REAL, "", 200),
        ({"metadata": "True"}, "", 200),
        ({}, "", 400),
        ({"Metadata": "yes"}, "", 400),
        ({**REAL, "X-Forwarded-For": "10.0.0.1"}, "", 400),
        (REAL, "api-version=latest", 400),
        (REAL, "api-version=2020-07-01&api-version=2021-02-01", 400),
        (REAL, "format=json", 400),
    ],
)
def test_it_is_as_strict_as_the_real_one(url: str, path: str, headers: dict[str, str], query: str, status: int) -> None:
    got, body = ask("GET", f"{url}{path}?{query or VERSION[path]}", headers=headers)
    assert got == status
    assert ("error" in body) is (status != 200)


def test_it_plays_what_it_is_told_and_says_what_it_got(url: str) -> None:
    events = f"{url}{EVENTS}?{VERSION[EVENTS]}"
    told = document(event("Preempt", OWN, left=30))
    assert ask("PUT", f"{url}/control/document", told) == (204, None)
    assert [ask("GET", events), ask("GET", events)] == [(200, told)] * 2
    assert ask("PUT", f"{url}/control/events", [{"status": 500}, {"document": told, "delay": 0.01}]) == (204, None)
    assert [ask("GET", events)[0] for _ in range(3)] == [500, 200, 200]
    assert ask("PUT", f"{url}/control/compute", {"document": {"name": "other"}}) == (204, None)
    assert ask("GET", f"{url}{COMPUTE}?{VERSION[COMPUTE]}") == (200, {"name": "other"})
    assert ask("PUT", f"{url}/control/approvals", [{"status": 503}, {"document": {}}]) == (204, None)
    wanted = {"StartRequests": [{"EventId": "a"}]}
    assert [ask("POST", events, body)[0] for body in ({"StartRequests": "a"}, wanted, wanted)] == [400, 503, 200]
    assert ask("GET", f"{url}/control/approved") == (200, ["a"])
    _, asked = ask("GET", f"{url}/control/requests")
    assert [method for method, _, _ in asked].count("POST") == 2
    assert ask("GET", f"{url}/control/other")[0] == 404
