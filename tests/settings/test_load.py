"""Where values come from, what wins, and what the shorthand stands for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable

import pytest
from pydantic import ValidationError

from relay.settings.listeners import Route
from relay.settings.model import Listener, Settings, load
from tests.support.programs import ROOT

Load = Callable[..., Settings]
SHORT = 'upstream = ["hub.example"]\n'


def test_the_defaults_are_the_documented_ones(load_text: Load) -> None:
    settings = load_text(SHORT)
    assert settings.model_dump(exclude={"listeners"}) == {
        "upstream": (),
        "routes": (),
        "workers": 0,
        "engine": "auto",
        "include": (),
        "limits": {
            "max_connections": 0,
            "max_connections_per_source": 0,
            "connect_rate_per_source": 0.0,
            "connect_burst_per_source": 10,
            "accept_rate": 0.0,
            "held_bytes": 67_108_864,
            "source_prefix_v4": 32,
            "source_prefix_v6": 64,
        },
        "access": {"allow": (), "deny": ()},
        "dial": {
            "connect_timeout": 5.0,
            "timeout": 15.0,
            "rate": 0.0,
            "queue": 1000,
            "queue_timeout": 10.0,
            "source_addresses": (),
        },
        "dns": {"nameservers": (), "min_ttl": 5.0, "max_ttl": 300.0, "hold": 3600.0},
        "health_check": {"interval": 5.0, "rise": 2, "fall": 3, "tls": False},
        "timeouts": {
            "client_hello": 5.0,
            "idle": 3600.0,
            "half_close": 300.0,
            "max_age": 0.0,
            "max_age_jitter": 0.1,
        },
        "tcp": {"keepalive_idle": 60, "keepalive_interval": 15, "keepalive_count": 4, "user_timeout": 30.0},
        "drain": {"announce": 15.0, "window": 60.0},
        "supervision": {"hang_timeout": 10.0},
        "admin": {"bind": "127.0.0.1:8414", "hosts": ()},
        "health": {"bind": "0.0.0.0:8080"},
        "metrics": {"customers": True},
        "azure": {
            "scheduled_events": False,
            "metadata_url": "http://169.254.169.254",
            "settings_state": "/run/relay-settings/state.json",
        },
        "log": {"format": "json", "level": "info", "access": True},
        "customers": (),
    }


def test_upstream_alone_makes_the_three_listeners_of_a_hub(load_text: Load) -> None:
    settings = load_text('upstream = ["MyHub.azure-devices.net.", "10.0.0.4", "fd00::4"]')
    assert settings.upstream == ()
    assert settings.listeners == tuple(
        Listener(
            name=name,
            bind=(f"0.0.0.0:{port}", f"[::]:{port}"),
            upstream=(f"myhub.azure-devices.net.:{port}", f"10.0.0.4:{port}", f"[fd00::4]:{port}"),  # it is complete
            routes=(
                Route(
                    name="myhub.device",
                    sni=("myhub.device.azure-devices.net",),
                    upstream=(f"myhub.device.azure-devices.net.:{port}",),
                    optional=True,
                ),
            ),
        )
        for name, port in (("https", 443), ("mqtt", 8883), ("amqp", 5671))
    )


def test_listeners_are_taken_as_written_in_one_spelling(load_text: Load) -> None:
    settings = load_text(
        """
        [[listeners]]
        name = "a_1-b"
        bind = ["127.0.0.1:0", "[0:0::1]:443"]
        upstream = ["Hub.example.:1", "[FD00::1]:2"]
        max_connections = 7
        """
    )
    (listener,) = settings.listeners
    assert listener.bind == ("127.0.0.1:0", "[::1]:443")
    assert listener.upstream == ("hub.example.:1", "[fd00::1]:2"), "the dot says that the name is complete"
    assert listener.max_connections == 7


def test_the_environment_wins_over_the_file_setting_by_setting(load_text: Load) -> None:
    toml = SHORT + "workers = 2\n[limits]\nmax_connections = 10\nsource_prefix_v4 = 24\n"
    settings = load_text(toml, {"RELAY_LIMITS__MAX_CONNECTIONS": "20000", "PATH": "/bin", "XRELAY_WORKERS": "9"})
    assert (settings.workers, settings.limits.max_connections, settings.limits.source_prefix_v4) == (2, 20000, 24)


def test_every_kind_of_value_can_come_from_the_environment(load_text: Load) -> None:
    listeners = [{"name": "x", "bind": ["127.0.0.1:1"], "upstream": ["a:2"], "sni": ["*.b"], "max_connections": 3}]
    route = {"name": "r", "sni": ["a.c"], "upstream": ["c:3"], "backup": ["d:4"], "rate": 2.5, "optional": True}
    listeners[0] |= {"proxy_protocol": "accept", "send_proxy_protocol": "v2", "routes": [route]}
    listeners[0] |= {"trusted_proxies": ["10.0.0.0/8"], "access": {"allow": ["10.1.0.0/16"], "deny": []}}
    listeners[0] |= {
        "timeouts": {"client_hello": 1.5, "idle": 2.0, "half_close": 3.0, "max_age": 4.0, "max_age_jitter": 0.5}
    }
    listeners[0] |= {"health_check": {"interval": 1.5, "rise": 1, "fall": 2, "tls": True}}
    settings = load_text(
        None,
        {
            "RELAY_LISTENERS": json.dumps(listeners),
            "RELAY_WORKERS": " 4\n",
            "RELAY_TIMEOUTS__IDLE": "1.5e3",
            "RELAY_DRAIN__WINDOW": "90",
            "RELAY_LOG__ACCESS": "False",
            "RELAY_LOG__LEVEL": "debug",
            "RELAY_ADMIN__BIND": "[::1]:0",
            "RELAY_HEALTH__BIND": "",
        },
    )
    assert settings.listeners[0].model_dump(mode="json") == listeners[0]
    assert (settings.workers, settings.timeouts.idle, settings.drain.window) == (4, 1500.0, 90.0)
    assert (settings.log.access, settings.log.level) == (False, "debug")
    assert (settings.admin.bind, settings.health.bind) == ("[::1]:0", "")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1.1.1.1", ("1.1.1.1:53",)),
        ("10.0.0.4, fd00::1 ,[fd00::1]:5353", ("10.0.0.4:53", "[fd00::1]:53", "[fd00::1]:5353")),
        ("[::1]:53,10.0.0.4:54", ("[::1]:53", "10.0.0.4:54")),
        ('["10.0.0.4", "[::1]:54"]', ("10.0.0.4:53", "[::1]:54")),
        ("", ()),
        ("[]", ()),
    ],
)
def test_a_list_in_the_environment_is_comma_separated_or_json(
    load_text: Load, text: str, expected: tuple[str, ...]
) -> None:
    assert load_text(SHORT, {"RELAY_DNS__NAMESERVERS": text}).dns.nameservers == expected


def test_an_empty_variable_takes_back_what_the_file_says(load_text: Load) -> None:
    listeners = '[{"name": "x", "bind": ["127.0.0.1:1"], "upstream": ["a:2"]}]'
    settings = load_text(SHORT, {"RELAY_UPSTREAM": "", "RELAY_LISTENERS": listeners})
    assert [listener.name for listener in settings.listeners] == ["x"]


def test_whole_numbers_are_good_durations(load_text: Load) -> None:
    idle = load_text(SHORT + "timeouts.idle = 90\n").timeouts.idle
    assert (idle, type(idle)) == (90.0, float)


def test_off_is_zero_or_empty(load_text: Load) -> None:
    settings = load_text(
        SHORT + "timeouts = {idle = 0, half_close = 0}\ntcp = {keepalive_idle = 0, user_timeout = 0}\n"
        'drain.window = 0\nadmin.bind = ""\nhealth.bind = ""\n'
    )
    assert (settings.timeouts.idle, settings.timeouts.half_close, settings.drain.window) == (0, 0, 0)
    assert (settings.tcp.keepalive_idle, settings.tcp.user_timeout) == (0, 0)
    assert (settings.admin.bind, settings.health.bind) == ("", "")


def test_a_byte_order_mark_and_windows_line_ends_are_taken(load_text: Load) -> None:
    assert load_text("\ufeff" + SHORT + "\r\nworkers = 3\r\n").workers == 3


def test_the_process_environment_is_not_read(load_text: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELAY_WORKERS", "7")
    monkeypatch.setenv("WORKERS", "8")
    assert load_text(SHORT).workers == 0


def test_settings_to_look_at_need_no_listeners() -> None:
    assert load(None, {}, require_listeners=False).listeners == ()


def test_settings_do_not_change(load_text: Load) -> None:
    settings = load_text(SHORT)
    for model, field in ((settings, "workers"), (settings.limits, "max_connections"), (settings.listeners[0], "name")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(model, field, 1)


@pytest.mark.parametrize("module", ["relay.address", "relay.supervisor.cpus"])
def test_what_workers_import_leaves_pydantic_alone(module: str) -> None:
    code = f"import sys, {module}; sys.exit('pydantic' in sys.modules)"
    root = ROOT
    assert subprocess.run([sys.executable, "-c", code], cwd=root, env=dict(os.environ), check=False).returncode == 0
