"""Whom the admin port obeys when a browser asks: a page of its own, and nobody who has led the browser there."""

from __future__ import annotations

import pytest
from multidict import CIMultiDict

from relay.supervisor.admin.http import refusal

FIREFOX = {"User-Agent": "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"}
BROWSER = {**FIREFOX, "Accept-Language": "en-GB,en;q=0.5"}
HOSTS = ("ops.example", "relay1")
OWN = [
    "127.0.0.1:8414",
    "127.0.0.1",
    "[::1]:8414",
    "[::1]",
    "10.0.0.4:8414",
    "[fd00::4]:1",
    "localhost:8414",
    "localhost",
    "LocalHost.:8414",
    "ops.example:8414",
    "OPS.example.",
    "relay1",
]
FOREIGN = [
    "attacker.example:8414",
    "attacker.example",
    "ops.example.attacker.example",
    "localhost.attacker.example:8414",
    "127.0.0.1.attacker.example",
    "127.0.0.1.nip.io:8414",
    "2130706433:8414",
    "127.1",
    "0x7f.1",
    "[::1",
    "[::1%25eth0]:80",
    "ops.example@attacker.example",
    "",
    " ",
    "a b",
    "relay1:x",
]


def asked(headers: dict[str, str], method: str = "GET", path: str = "/status") -> bool:
    return refusal(method, path, CIMultiDict(headers), HOSTS) == ""


@pytest.mark.parametrize("host", OWN)
def test_a_browser_may_use_the_port_by_address_and_by_names_that_are_known(host: str) -> None:
    assert asked({"Host": host, **BROWSER})
    for scheme in ("http", "https"):
        assert asked({"Host": host, "Origin": f"{scheme}://{host}", **BROWSER}, "POST", "/drain")


@pytest.mark.parametrize("host", FOREIGN)
def test_it_may_not_by_any_other_name(host: str) -> None:
    assert not asked({"Host": host, "Origin": f"http://{host}", **BROWSER}, "POST", "/drain")
    assert not asked({"Host": host, "Origin": f"http://{host}"}, "POST", "/drain")
    for mark in (FIREFOX, {"Accept-Language": "*"}, {"Referer": f"http://{host}/"}, {"Cookie": "a=b"}):
        for path in ("/status", "/metrics", "/", "/anything"):
            assert not asked({"Host": host, **mark}, path=path), mark
    assert not asked({"Host": host, "Sec-Fetch-Site": "same-origin"})


@pytest.mark.parametrize("host", [*OWN, *FOREIGN])
@pytest.mark.parametrize("agent", [{}, {"User-Agent": "curl/8.5.0"}, {"User-Agent": "Prometheus/2.53.0"}])
def test_programs_may_use_any_name(host: str, agent: dict[str, str]) -> None:
    headers = {"Host": host, "Accept": "*/*", "Accept-Encoding": "gzip", **agent}
    assert asked(headers, path="/metrics")
    assert asked(headers, "POST", "/reload")


@pytest.mark.parametrize(
    "origin",
    [
        "http://attacker.example",
        "http://127.0.0.1:8414",  # another port is another site
        "http://127.0.0.1",
        "http://127.0.0.1:84140",
        "http://localhost:8415",
        "null",
        "",
        "127.0.0.1:8415",
        "ftp://127.0.0.1:8415",
        "http://127.0.0.1:8415@attacker.example",
        "http://127.0.0.1:8415, http://127.0.0.1:8415",
    ],
)
@pytest.mark.parametrize("method", ["POST", "GET", "OPTIONS"])
def test_a_page_of_another_site_may_nothing(origin: str, method: str) -> None:
    assert not asked({"Host": "127.0.0.1:8415", "Origin": origin}, method)


def test_another_site_may_have_a_link_to_it_and_nothing_else() -> None:
    link = {"Host": "localhost:8414", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document", **BROWSER}
    for site in ("cross-site", "same-site"):
        assert asked({**link, "Sec-Fetch-Site": site})
        assert not asked({**link, "Sec-Fetch-Site": site, "Sec-Fetch-Dest": "iframe"})
        assert not asked({**link, "Sec-Fetch-Site": site, "Sec-Fetch-Dest": "script", "Sec-Fetch-Mode": "no-cors"})
        assert not asked({**link, "Sec-Fetch-Site": site}, "POST", "/drain")
    for site in ("none", "same-origin"):
        assert asked({**link, "Sec-Fetch-Site": site, "Sec-Fetch-Dest": "empty"})


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/healthz"])
def test_health_is_no_secret(path: str) -> None:
    assert asked({"Host": "attacker.example", **BROWSER}, path=path)
