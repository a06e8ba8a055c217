"""What is said about settings that cannot be used: one line per mistake, all at once, naming what to change."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from relay.settings.model import SettingsError, load

Problems = Callable[..., list[str]]
SHORT = 'upstream = ["hub.example"]\n'
IDLE = "longest time that a connection may be silent in both directions, in seconds; 0 = no limit (default 3600.0)"


def listener(name: str = "x", bind: str = '"127.0.0.1:1"', upstream: str = '"a:1"', more: str = "") -> str:
    return f'[[listeners]]\nname = "{name}"\nbind = [{bind}]\nupstream = [{upstream}]\n{more}\n'


def test_a_duration_with_a_unit_is_told_the_unit(problems: Problems) -> None:
    assert problems(SHORT + '[timeouts]\nidle = "5m"\n') == [f'timeouts.idle: "5m" is not a number; {IDLE}']


def test_a_value_of_the_environment_is_named_by_its_variable(problems: Problems) -> None:
    assert problems(SHORT, {"RELAY_TIMEOUTS__IDLE": "1h"}) == [
        f'RELAY_TIMEOUTS__IDLE (timeouts.idle): "1h" is not a number; {IDLE}'
    ]
    assert problems(None, {"RELAY_UPSTREAM": "a.example,-b"})[0].startswith('RELAY_UPSTREAM (upstream[1]): "-b" is not')


@pytest.mark.parametrize(
    ("toml", "problem"),
    [
        ("workers = true", "workers: true is not a whole number; number of worker processes"),
        ("workers = 2.0", "workers: 2.0 is not a whole number; "),
        ('workers = "2"', 'workers: "2" is not a whole number; '),
        ("workers = 2024-01-01", "workers: 2024-01-01 is not a whole number; "),
        ("workers = [2]", "workers: a list is not a whole number; "),
        ("workers = -1", "workers: -1 is out of range (0 to 256); "),
        ("workers = 257", "workers: 257 is out of range (0 to 256); "),
        ("workers = 0x" + "f" * 5000, "workers: a number of dozens of digits is out of range (0 to 256); "),
        ('limits.max_connections = "64k"', 'limits.max_connections: "64k" is not a whole number; most connections '),
        ("limits.max_connections = -1", "limits.max_connections: -1 is out of range (0 to 10000000); "),
        ("limits.source_prefix_v4 = 0", "limits.source_prefix_v4: 0 is out of range (1 to 32); "),
        ("limits.source_prefix_v6 = 129", "limits.source_prefix_v6: 129 is out of range (1 to 128); "),
        ("dial.connect_timeout = 0", "dial.connect_timeout: 0 is out of range (more than 0, at most 3600); longest "),
        ("timeouts.idle = true", "timeouts.idle: true is not a number; "),
        ("timeouts.idle = nan", "timeouts.idle: nan is not a finite number; "),
        ("timeouts.idle = inf", "timeouts.idle: inf is not a finite number; "),
        ("timeouts.half_close = -0.5", "timeouts.half_close: -0.5 is out of range (0 to 31536000); "),
        ("timeouts.idle = 0x" + "f" * 5000, "timeouts.idle: a number of dozens of digits is out of range (0 to "),
        ("tcp.keepalive_interval = 0", "tcp.keepalive_interval: 0 is out of range (1 to 32767); "),
        ("tcp.keepalive_count = 128", "tcp.keepalive_count: 128 is out of range (1 to 127); "),
        ("log.access = 1", "log.access: 1 is neither true nor false; "),
        ('log.access = "true"', 'log.access: "true" is neither true nor false; '),
        ('log.format = "text"', 'log.format: "text" is not one of "json", "console"; '),
        ('log.level = "INFO"', 'log.level: "INFO" is not one of "debug", "info", "warning", "error"; '),
        ('engine = "epoll"', 'engine: "epoll" is not one of "auto", "ring", "stream"; '),
        ('dns.nameservers = "10.0.0.4"', 'dns.nameservers: "10.0.0.4" is not a list of strings; '),
        (
            'access.allow = ["10.0.0.0/33"]',
            'access.allow[0]: "10.0.0.0/33" has no prefix length from 0 to 32 behind its /',
        ),
        (
            'access.allow = ["10.0.0.1/8"]',
            'access.allow[0]: "10.0.0.1/8" has bits set behind its prefix; the network is 10.0.0.0/8',
        ),
        ('access.deny = ["::/0", "2001:db8::1/32"]', "access.deny[1]: "),
        (
            'access.deny = ["hub.example"]',
            'access.deny[0]: "hub.example" is neither a network like 10.0.0.0/8 or 2001:db8::/32 nor ',
        ),
        ('access.deny = ["fe80::1%eth0"]', 'access.deny[0]: "fe80::1%eth0" has a zone id'),
        ('dns.nameservers = ["ns.example"]', 'dns.nameservers[0]: "ns.example" is not a literal address; '),
        ('dns.nameservers = ["10.0.0.4:0"]', 'dns.nameservers[0]: "10.0.0.4:0" has port 0'),
        ("dns.nameservers = [10]", "dns.nameservers[0]: 10 is not a string; write it in quotes"),
        ('admin.bind = "localhost:8414"', 'admin.bind: "localhost:8414" is not a literal address; '),
        ('admin.bind = ":8414"', 'admin.bind: ":8414" has no host; every address is 0.0.0.0:port'),
        ("admin.bind = 8414", "admin.bind: 8414 is not a string; write it in quotes; "),
        (
            'admin.hosts = ["ops.example:8414"]',
            'admin.hosts[0]: "ops.example:8414" has a port, where a host alone belongs',
        ),
        ('admin.hosts = ["http://ops.example"]', 'admin.hosts[0]: "http://ops.example" has a slash'),
        ('admin.hosts = ["*.example"]', 'admin.hosts[0]: "*.example" is not a host name'),
        ('admin.hosts = "ops.example"', 'admin.hosts: "ops.example" is not a list of strings; '),
        ("admin = 8414", "admin: 8414 is not a table; write [admin]"),
    ],
)
def test_a_wrong_value_is_told_what_it_may_be(problems: Problems, toml: str, problem: str) -> None:
    (found,) = problems(SHORT + toml + "\n")
    assert found.startswith(problem)


@pytest.mark.parametrize(
    ("toml", "problem"),
    [
        ("[limits]\nmax_conections = 5", "limits.max_conections: unknown setting; did you mean max_connections?"),
        ("[limit]\nmax_connections = 5", "limit: unknown setting; did you mean limits?"),
        ("max_connections = 5", "max_connections: unknown setting; did you mean limits.max_connections?"),
        ("[dial]\nRATE = 5.0", "dial.RATE: unknown setting; did you mean rate?"),
        ("[dial]\nxyz = 5.0", "dial.xyz: unknown setting"),
        ('"a b\\n" = 5', '"a b\\n": unknown setting'),
    ],
)
def test_an_unknown_name_in_the_file_is_told_the_nearest(problems: Problems, toml: str, problem: str) -> None:
    assert problems(SHORT + toml + "\n") == [problem]


@pytest.mark.parametrize(
    ("variable", "hint"),
    [
        ("RELAY_LIMITS__MAX_CONECTIONS", "did you mean RELAY_LIMITS__MAX_CONNECTIONS?"),
        ("RELAY_LIMITS_MAX_CONNECTIONS", "did you mean RELAY_LIMITS__MAX_CONNECTIONS?"),
        ("RELAY_workers", "did you mean RELAY_WORKERS?"),
        (
            "RELAY_LOG",
            "it is a table, whose settings are set one by one: RELAY_LOG__FORMAT, RELAY_LOG__LEVEL, RELAY_LOG__ACCESS",
        ),
        ("RELAY_QQQQQQ", "`relay config` shows every setting"),
        ("RELAY_", "`relay config` shows every setting"),
    ],
)
def test_an_unknown_variable_is_told_the_nearest(problems: Problems, variable: str, hint: str) -> None:
    assert problems(SHORT, {variable: "1"}) == [f"{variable}: unknown setting; {hint}"]


def test_all_mistakes_are_said_at_once(problems: Problems) -> None:
    found = problems(
        "workers = 999\nlimits = 5\n[timeouts]\nidle = '5m'\nidel = 1\n",
        {"RELAY_DRAIN__WINDOW": "x", "RELAY_FOO": "", "RELAY_LISTENERS": "[]"},
    )
    assert [problem.split(":")[0] for problem in found] == [
        "limits",
        "RELAY_FOO",
        "workers",
        "timeouts.idle",
        "timeouts.idel",
        "RELAY_DRAIN__WINDOW (drain.window)",
        "upstream",
    ]


def test_a_table_in_the_environment_does_not_hide_a_mistake_in_the_file(problems: Problems) -> None:
    (problem,) = problems(SHORT + "limits = 5\n", {"RELAY_LIMITS__MAX_CONNECTIONS": "1"})
    assert problem.startswith("limits: 5 is not a table")


@pytest.mark.parametrize("toml", ["", "upstream = []\n", "upstream = []\nlisteners = []\n"])
def test_nothing_to_relay_to_is_a_mistake_that_shows_what_to_set(problems: Problems, toml: str) -> None:
    (problem,) = problems(toml)
    assert 'set upstream = ["myhub.azure-devices.net"]' in problem
    assert "RELAY_UPSTREAM=myhub.azure-devices.net" in problem


def test_what_could_not_be_read_is_not_called_missing(problems: Problems) -> None:
    (problem,) = problems("upstream = [\n")
    assert "Invalid value" in problem
    (problem,) = problems(None, {"RELAY_LISTENERS": "[{"})
    assert problem.startswith('RELAY_LISTENERS (listeners): "[{" is not valid JSON: ')
    (problem,) = problems(None, {"RELAY_LISTENERS": '{"name": "x"}'})
    assert " is not a JSON list; " in problem


def test_upstream_and_listeners_together_are_a_mistake(problems: Problems) -> None:
    (problem,) = problems(listener(), {"RELAY_UPSTREAM": "hub.example"})
    assert problem.startswith("RELAY_UPSTREAM (upstream) and listeners: both given; ")


@pytest.mark.parametrize("text", ["hub.example:8883", "10.0.0.4:443", "[fd00::1]:443", "hub.example:"])
def test_the_shorthand_with_a_port_points_to_listeners(problems: Problems, text: str) -> None:
    (problem,) = problems(f'upstream = ["{text}"]\n')
    assert problem.startswith(f'upstream[0]: "{text}" has a port; ')
    assert "[[listeners]]" in problem


@pytest.mark.parametrize(
    ("toml", "problem"),
    [
        ("[[listeners]]\nname = 'x'\nbind = ['[::]:1']", "listeners[0].upstream: missing; where to connect"),
        (listener(name="X"), 'listeners[0].name: "X" is not 1 to 32 of a-z'),
        (listener(name=""), 'listeners[0].name: "" is not 1 to 32 of a-z'),
        (listener(name="x" * 33), 'listeners[0].name: "xxx'),
        (listener(bind=""), "listeners[0].bind: is empty; addresses to listen on"),
        (listener(bind='"localhost:1"'), 'listeners[0].bind[0]: "localhost:1" is not a literal address'),
        (listener(bind='"1.2.3.4:1", "::"'), 'listeners[0].bind[1]: "::" has no port'),
        (listener(upstream='"hub.example"'), 'listeners[0].upstream[0]: "hub.example" has no port'),
        (listener(upstream='"hub.example:0"'), 'listeners[0].upstream[0]: "hub.example:0" has port 0'),
        (listener(more="max_connections = true"), "listeners[0].max_connections: true is not a whole number"),
        (listener(more='sni = ["hub.example:443"]'), 'listeners[0].sni[0]: "hub.example:443" is no name; write hub.'),
        (
            listener(more='sni = ["a", "h*b.example"]'),
            'listeners[0].sni[1]: "h*b.example" has a * that is not the whole ',
        ),
        (listener(more='sni = ["*."]'), 'listeners[0].sni[0]: "*." is no name'),
        (listener(more='sni = ["bücher.example"]'), 'listeners[0].sni[0]: "bücher.example" '),
        (
            listener(more="proxy_protocol = 'v2'"),
            'listeners[0].proxy_protocol: "v2" is not one of "off", "accept", "require"; PROXY protocol ',
        ),
        (listener(more="upstreams = []"), "listeners[0].upstreams: unknown setting; did you mean upstream?"),
        (listener() + listener(bind='"127.0.0.1:2"'), 'listeners[1].name: "x" is also the name of listeners[0]'),
        ("[listeners]\nname = 'x'", "listeners: a table is not a list of tables; write [[listeners]] before each"),
        ("listeners = [5]", "listeners[0]: 5 is not a table"),
    ],
)
def test_a_mistake_in_a_listener_names_the_listener(problems: Problems, toml: str, problem: str) -> None:
    (found,) = problems(toml)
    assert found.startswith(problem)


@pytest.mark.parametrize(
    ("toml", "problem"),
    [
        (
            listener(bind='"1.2.3.4:1", "1.2.3.4:1"'),
            'listeners[0].bind[1]: "1.2.3.4:1" is already bound by listeners[0]',
        ),
        (
            listener("a", '"[::1]:1"') + listener("b", '"[0::1]:1"'),
            'listeners[1].bind[0]: "[::1]:1" is already bound by',
        ),
        (listener(bind='"127.0.0.1:8414"'), 'admin.bind: "127.0.0.1:8414" is already bound by listeners[0].bind[0]'),
        (listener(bind='"0.0.0.0:8414"'), 'admin.bind: "127.0.0.1:8414" is already bound by listeners[0].bind[0]'),
        (listener(bind='"10.0.0.4:8080"'), 'health.bind: "0.0.0.0:8080" is already bound by listeners[0].bind[0]'),
        (
            SHORT + 'admin.bind = "[::1]:443"',
            'admin.bind: "[::1]:443" is already bound by the https listener of upstream',
        ),
        (SHORT + 'admin.bind = "1.2.3.4:8080"', 'health.bind: "0.0.0.0:8080" is already bound by admin.bind'),
        # Neither of the two sets IPV6_V6ONLY.
        (SHORT + 'admin.bind = "[::]:8080"', 'health.bind: "0.0.0.0:8080" is already bound by admin.bind'),
        (
            listener(bind='"1.2.3.4:9"') + '[admin]\nbind = "[::]:9"',
            'admin.bind: "[::]:9" is already bound by listeners[0].bind[0]',
        ),
    ],
)
def test_an_address_that_is_bound_twice_is_a_mistake(problems: Problems, toml: str, problem: str) -> None:
    (found,) = problems(toml)
    assert found.startswith(problem)


@pytest.mark.parametrize(
    "toml",
    [
        listener(bind='"127.0.0.1:0", "127.0.0.1:0"') + 'admin.bind = "127.0.0.1:0"\nhealth.bind = "127.0.0.1:0"',
        listener(bind='"0.0.0.0:1", "[::]:1", "127.0.0.1:1"'),
        listener(bind='"127.0.0.2:8414", "[::]:8414", "[::]:8080"'),
        listener(bind='"0.0.0.0:8414", "0.0.0.0:8080"').join(['admin.bind = ""\nhealth.bind = ""\n', ""]),
    ],
)
def test_addresses_that_the_kernel_keeps_apart_are_not(toml: str, tmp_path: Path) -> None:
    # `admin.bind = …` below a [[listeners]] header would be that listener's.
    lines = toml.splitlines()
    top = [line for line in lines if line.startswith(("admin.", "health."))]
    path = tmp_path / "relay.toml"
    path.write_text("\n".join(top + [line for line in lines if line not in top]))
    assert len(load(path, {}).listeners) == 1


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"a = \n", "line 1, column 5: Invalid value"),
        (b"workers = 1\r\nworkers = 2\r\n", "line 2, column 12: Cannot overwrite a value"),
        (b'upstream = ["a', "line 1, column 15: Unterminated string"),
        (b"\xef\xbb\xbfworkers = 1\n# caf\xe9\n", "line 2, column 6: not UTF-8"),
        (b"workers = " + b"9" * 5000, "has a number with thousands of digits"),
        (b"workers = " + b"[" * 100_000, "nested too deeply"),
        (b"#" * (4 << 20) + b"\n", "more than 4194304 bytes, which is no settings file"),
    ],
)
def test_a_file_that_is_no_toml_is_told_where(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "relay.toml"
    path.write_bytes(content)
    with pytest.raises(SettingsError) as raised:
        load(path, {})
    assert raised.value.problems == [f"{path}: {problem}"]
    assert str(raised.value) == raised.value.problems[0]


def test_a_file_that_cannot_be_read_is_told_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def problem(path: Path) -> str:
        with pytest.raises(SettingsError) as raised:
            load(path, {})
        (line,) = raised.value.problems
        return line

    assert problem(tmp_path / "none\x1b[2J") == f"--config {tmp_path}/none\\x1b[2J: no such file or directory"
    assert problem(tmp_path) == f"--config {tmp_path}: is a directory; name a regular file"

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, os.strerror(13))

    (tmp_path / "secret").touch()
    monkeypatch.setattr(Path, "open", denied)
    assert problem(tmp_path / "secret") == f"--config {tmp_path}/secret: permission denied"


@pytest.mark.parametrize("text", ["", "# workers = 1\n", "[access]\n[limits]\n#deny = []\n", "\ufeff\n"])
def test_a_file_that_sets_nothing_is_named_where_nothing_else_says_what_to_do(tmp_path: Path, text: str) -> None:
    path = tmp_path / "relay.toml"
    path.write_text(text)
    with pytest.raises(SettingsError) as raised:
        load(path, {})
    (line,) = raised.value.problems
    assert line.startswith("upstream: not set")
    assert f"{path} sets nothing" in line
    assert load(path, {"RELAY_UPSTREAM": "hub.example"}).listeners


def test_a_file_that_sets_nothing_any_more_undoes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "relay.toml"
    environ = {"RELAY_UPSTREAM": "hub.example"}
    path.write_text('[access]\nallow = ["192.0.2.0/24"]\n[limits]\nmax_connections_per_source = 5\n')
    before = load(path, environ)
    path.write_text("[access]\n")
    with pytest.raises(SettingsError) as raised:
        load(path, environ, before=before)
    (line,) = raised.value.problems
    assert line.startswith(f"{path} sets nothing")
    assert "limits.max_connections_per_source, access.allow" in line
    path.write_text("[access]\nallow = []\n")  # which says so
    assert load(path, environ, before=before).access.allow == ()
    path.write_text("")
    without = load(path, environ)
    assert load(path, environ, before=without) == without, "there is nothing to lose"


def test_values_are_cut_and_control_characters_escaped(problems: Problems) -> None:
    (problem,) = problems(SHORT + 'engine = "\\u001b[31m\\n\\u202e\\"' + "x" * 5000 + '"\n')
    assert problem.startswith('engine: "\\x1b[31m\\n\\u202e\\"xxx')
    assert len(problem) < 250
    (problem,) = problems(SHORT, {"RELAY_ENGINE": "\udcff", "HOME": "\udcff"})
    assert problem.startswith('RELAY_ENGINE (engine): "\\udcff" is not UTF-8; ')


def test_a_least_ttl_above_the_greatest_is_told(problems: Problems) -> None:
    assert problems(SHORT + "[dns]\nmin_ttl = 20.0\nmax_ttl = 10\n") == [
        "dns.min_ttl: 20.0 is more than dns.max_ttl, which is 10"
    ]
    assert problems(SHORT + "[dns]\n", {"RELAY_DNS__MIN_TTL": "400"}) == [
        "RELAY_DNS__MIN_TTL (dns.min_ttl): 400.0 is more than dns.max_ttl, which is 300.0"
    ]


@pytest.mark.parametrize("rate", ["1e-12", "5e-324", "0.0009"])
def test_a_rate_that_no_clock_can_keep_is_told(problems: Problems, rate: str) -> None:
    (problem,) = problems(SHORT + f"[limits]\naccept_rate = {rate}\n")
    assert problem.startswith(f"limits.accept_rate: {float(rate)} is less than 0.001 (one in 1000 s); set ")


@pytest.mark.parametrize("size", [1, 4096, 1_048_575])
def test_a_limit_that_leaves_no_room_for_holding_anything(problems: Problems, size: int) -> None:
    (problem,) = problems(SHORT + f"[limits]\nheld_bytes = {size}\n")
    assert problem.startswith(f"limits.held_bytes: {size} is less than 1048576 (1 MiB); set at least that, or 0; ")
