"""What a listener has of its own in place of the instance's: what holds, what is written again, and what is refused."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable

import pytest

from relay.settings.inherited import UpstreamCheck, access, timeouts, upstream_checks
from relay.settings.model import Settings, render
from relay.settings.tables import AccessSettings, HealthCheckSettings, TimeoutSettings
from relay.settings.warnings import settings_warnings

Load = Callable[..., Settings]
Problems = Callable[..., list[str]]


def listener(name: str, port: int, more: str = "", upstream: str = "hub.example:8883") -> str:
    return f'[[listeners]]\nname = "{name}"\nbind = ["127.0.0.1:{port}"]\nupstream = ["{upstream}"]\n{more}\n'


def checks(settings: Settings) -> dict[str, UpstreamCheck]:
    return upstream_checks(settings.health_check, settings.listeners)


ROUTE = '[[listeners.routes]]\nname = "r"\nsni = ["r.example"]\nupstream = ["r.example.:1"]\nbackup = ["b.example:2"]\n'


def test_keys_given_replace_the_instances_and_the_rest_is_inherited(load_text: Load) -> None:
    settings = load_text(
        "[health_check]\ninterval = 7.0\nfall = 9\n"
        + listener("one", 1)
        + listener("two", 2, "[listeners.health_check]\nrise = 1\nfall = 3\ntls = true\n" + ROUTE, "two.example:443")
    )
    own = UpstreamCheck(HealthCheckSettings(interval=7.0, rise=1, fall=3, tls=True), 0)
    assert checks(settings) == {
        "hub.example:8883": UpstreamCheck(settings.health_check, 0),
        "two.example:443": own,
        "r.example:1": own,
        "b.example:2": own,
    }


def test_what_is_inherited_is_not_written(load_text: Load) -> None:
    toml = "[health_check]\nfall = 9\n" + listener("one", 1, "[listeners.health_check]\nfall = 3\n", "a:1")
    settings = load_text(toml + listener("two", 2))
    written = tomllib.loads(render(settings))
    assert [item.get("health_check") for item in written["listeners"]] == [{"fall": 3}, None]
    assert load_text(render(settings)) == settings


def test_a_listener_that_gives_the_instances_value_differs_from_one_that_inherits_it(load_text: Load) -> None:
    given, inherits = load_text(listener("one", 1, "health_check.fall = 3")), load_text(listener("one", 1))
    assert checks(given) == checks(inherits)
    assert given.listeners != inherits.listeners, "the hash of the settings, and a later change of the instance's"


def test_the_environment_has_them_in_the_list_of_listeners(load_text: Load) -> None:
    table = {"name": "one", "bind": ["127.0.0.1:1"], "upstream": ["a:1"], "health_check": {"tls": True}}
    settings = load_text(None, {"RELAY_LISTENERS": json.dumps([table])})
    assert checks(settings)["a:1"].settings.tls


def test_two_listeners_may_check_one_upstream_in_the_same_way(load_text: Load) -> None:
    same = "[listeners.health_check]\ninterval = 5.0\n"
    assert len(checks(load_text(listener("one", 1, same) + listener("two", 2)))) == 1, "given or inherited"


@pytest.mark.parametrize(
    ("toml", "problem"),
    [
        (
            listener("one", 1, "health_check.interval = 30.0") + listener("two", 2),
            "listeners.two.health_check: interval 5.0, but listeners.one has interval 30.0 and the same upstream, "
            "hub.example:8883: an upstream has one health check, whichever listeners lead to it",
        ),
        (
            listener("one", 1, upstream="r.example:1") + listener("two", 2, "health_check.tls = true\n" + ROUTE),
            "listeners.two.health_check: tls true, but listeners.one has tls false and the same upstream, r.example:1:",
        ),
        (
            "[health_check]\ntls = true\n"
            + listener("one", 1)
            + listener("two", 2, 'send_proxy_protocol = "v2"', "HUB.example.:8883"),
            "listeners.two.send_proxy_protocol: v2, but listeners.one has off and the same upstream, hub.example:8883: "
            "its check by TLS sends the header as well, and an upstream has one check for all listeners",
        ),
        (
            "[health_check]\ntls = true\n" + listener("one", 1, upstream="10.0.0.4:443"),
            "health_check.tls: the upstream 10.0.0.4:443 of one is an address, and a certificate is verified for a "
            "name: write the name, or set listeners.health_check.tls = false there",
        ),
        (
            listener("one", 1, "health_check.tls = true", "[fd00::1]:443"),
            "listeners.one.health_check.tls: the upstream [fd00::1]:443 of one is an address,",
        ),
        (
            listener("one", 1, "health_check.fall = 0"),
            "listeners[0].health_check.fall: 0 is out of range (1 to 1000); failed checks in a row",
        ),
        (
            listener("one", 1, 'health_check.tls = "yes"'),
            'listeners[0].health_check.tls: "yes" is neither true nor false; true = a check also makes',
        ),
        (
            listener("one", 1, "health_check.intervall = 1.0"),
            "listeners[0].health_check.intervall: unknown setting; did you mean interval?",
        ),
        (
            listener("one", 1, "health_check = 3"),
            "listeners[0].health_check: 3 is not a table; write [listeners.health_check] before its keys",
        ),
    ],
)
def test_mistakes_are_one_line_that_names_both_places(problems: Problems, toml: str, problem: str) -> None:
    (found,) = problems(toml)
    assert found.startswith(problem)
    assert "default None" not in found
    assert "null" not in found


def test_many_upstreams_in_common_are_one_mistake(problems: Problems) -> None:
    hosts = '"a:1", "b:1", "c:1'
    (found,) = problems(
        listener("one", 1, "health_check.rise = 1", hosts.strip('"')) + listener("two", 2, "", hosts.strip('"'))
    )
    assert "upstream, a:1:" in found


def test_with_the_same_header_the_check_sends_it(load_text: Load) -> None:
    header = 'send_proxy_protocol = "v1"\nhealth_check.tls = true'
    settings = load_text(listener("one", 1, header) + listener("two", 2, header))
    assert checks(settings)["hub.example:8883"].send_proxy == 1
    assert checks(load_text(listener("one", 1, 'send_proxy_protocol = "v1"')))["hub.example:8883"].send_proxy == 0


def test_timeouts_given_replace_the_instances(load_text: Load) -> None:
    settings = load_text(
        "[timeouts]\nidle = 100.0\nhalf_close = 7.0\n"
        + listener("one", 1)
        + listener("two", 2, "[listeners.timeouts]\nidle = 0.0\nmax_age = 9.0\n")
    )
    one, two = (timeouts(settings.timeouts, item) for item in settings.listeners)
    assert one == settings.timeouts
    assert two == TimeoutSettings(idle=0.0, half_close=7.0, max_age=9.0), "0 is a value: off"
    written = tomllib.loads(render(settings))
    assert [item.get("timeouts") for item in written["listeners"]] == [None, {"idle": 0.0, "max_age": 9.0}]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("idle = -1.0", "listeners[0].timeouts.idle: -1.0 is out of range (0 to 31536000); longest time"),
        ("max_age_jitter = 1.5", "listeners[0].timeouts.max_age_jitter: 1.5 is out of range (0 to 1); largest random"),
        ('half_close = "5m"', 'listeners[0].timeouts.half_close: "5m" is not a number; longest time'),
        ("idel = 5.0", "listeners[0].timeouts.idel: unknown setting; did you mean idle?"),
    ],
)
def test_mistakes_in_timeouts(problems: Problems, text: str, problem: str) -> None:
    (found,) = problems(listener("one", 1, f"[listeners.timeouts]\n{text}\n"))
    assert found.startswith(problem)


@pytest.mark.parametrize(
    ("toml", "warnings"),
    [
        (
            "[timeouts]\nidle = 60.0\n" + listener("a", 1) + listener("b", 2, "timeouts.idle = 7200.0"),
            ["timeouts.idle: 60 s is less than 1767, the longest keep-alive of an MQTT client: quiet devices of "
             "listeners.a are cut off"],
        ),
        (
            listener("a", 1, 'sni = ["x.example"]\ntimeouts.client_hello = 0.0') + listener("b", 2, 'sni = ["x.y"]'),
            ["listeners.a.timeouts.client_hello: 0, so a client of listeners.a that sends nothing holds its "
             "connection for ever: set a number of seconds"],
        ),
        (
            "[tcp]\nkeepalive_idle = 0\n" + listener("a", 1, "timeouts.idle = 0.0") + listener("b", 2),
            ["listeners.a.timeouts.idle and tcp.keepalive_idle: both 0, so a peer that vanishes holds its connection "
             "for ever"],
        ),
    ],
)  # fmt: skip
def test_warnings_name_the_setting_that_says_so(load_text: Load, toml: str, warnings: list[str]) -> None:
    assert settings_warnings(load_text(toml)) == warnings


def test_access_given_replaces_and_the_instances_deny_holds(load_text: Load) -> None:
    settings = load_text(
        '[access]\nallow = ["10.0.0.0/8"]\ndeny = ["10.1.0.0/16"]\n'
        + listener("one", 1)
        + listener("two", 2, "access.allow = []")
        + listener("three", 3, 'access.deny = ["10.2.0.0/16"]')
    )
    one, two, three = (access(settings.access, item) for item in settings.listeners)
    assert one == settings.access
    assert two == AccessSettings(allow=(), deny=("10.1.0.0/16",))
    assert three == AccessSettings(allow=("10.0.0.0/8",), deny=("10.1.0.0/16", "10.2.0.0/16"))
    assert load_text(render(settings)) == settings


@pytest.mark.parametrize(
    ("toml", "problem"),
    [
        (
            listener("one", 1, 'access.allow = ["10.0.0.1/8"]'),
            'listeners[0].access.allow[0]: "10.0.0.1/8" ',
        ),
        (
            listener("one", 1, 'trusted_proxies = ["10.0.0.0/8"]'),
            'listeners[0].trusted_proxies: no PROXY header is read here; set proxy_protocol to "accept" or "require"',
        ),
        (
            listener("one", 1, 'proxy_protocol = "require"') + '[[customers]]\nname = "a"\nlink_ids = [7]\n',
            ": whoever connects could name a link id, since listeners[0].trusted_proxies is not "
            "set: set it to the network from which Private Link connects",
        ),
    ],
)
def test_mistakes_in_access_and_proxies(problems: Problems, toml: str, problem: str) -> None:
    (found,) = problems(toml)
    assert problem in found


def test_a_network_allowed_in_vain_is_warned_of_by_listener(load_text: Load) -> None:
    settings = load_text(
        '[access]\ndeny = ["10.1.0.0/16"]\n' + listener("one", 1, 'access.allow = ["10.1.2.0/24", "10.0.0.0/16"]')
    )
    assert settings_warnings(settings) == [
        "listeners.one.access.allow: 10.1.2.0/24: wholly in listeners.one.access.deny, which wins: no client from "
        "there is admitted"
    ]
