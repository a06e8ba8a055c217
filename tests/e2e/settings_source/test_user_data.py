"""User data becomes the settings file, and the running relay follows it without cutting a connection."""

from __future__ import annotations

import socket
import stat
from pathlib import Path

import pytest

from tests.e2e.settings_source.fetching import LONG, Fleet, source, wait_source
from tests.support.clients import connect, receive
from tests.support.observe import wait_until

pytestmark = pytest.mark.timeout(LONG)


def passes(client: socket.socket, data: bytes) -> bool:
    client.sendall(data)
    return receive(client, len(data)) == data


def test_the_first_settings_are_written_so_that_the_service_can_read_them(fleet: Fleet) -> None:
    text = fleet.toml()
    fleet.metadata.publish(text)
    done = fleet.fetch(wrapper=["sh", "-c", 'umask 077; exec "$@"', "sh"])
    assert (done.returncode, done.stderr) == (0, "")
    assert "written" in done.stdout
    assert fleet.config.read_text() == text
    assert stat.S_IMODE(fleet.config.stat().st_mode) == 0o644
    assert stat.S_IMODE(fleet.state.stat().st_mode) == 0o644
    assert [path.name for path in fleet.config.parent.iterdir() if path.name.startswith(".")] == []
    (request,) = fleet.metadata.user_data.requests
    assert request.path == "/metadata/instance/compute/userData?api-version=2021-01-01&format=text"
    assert request.headers["Metadata"] == "true"


def test_a_running_relay_follows_and_no_connection_is_cut(fleet: Fleet, tmp_path: Path) -> None:
    fleet.good(idle=600.0)
    with fleet.relay(tmp_path / "relay") as relay, connect(relay.address()) as client:
        assert passes(client, b"before")
        first = relay.status()["settings_hash"]
        assert wait_source(relay, up=True)["hash"] == first
        assert relay.metrics().value("relay_settings_info", hash=first) == 1
        assert relay.metrics().value("relay_settings_source_up") == 1
        fleet.metadata.publish(fleet.toml(idle=900.0))
        done = fleet.fetch()
        assert done.returncode == 0, done.stderr
        assert "has reloaded" in done.stdout
        second = relay.status()["settings_hash"]
        assert second != first
        assert relay.metrics().value("relay_settings_info", hash=second) == 1
        assert wait_source(relay, up=True, hash=second)
        assert passes(client, b"after")
        assert len(relay.events("reloaded")) == 1
        relay.wait_active(1)


def test_nothing_is_written_or_reloaded_without_a_change(fleet: Fleet, tmp_path: Path) -> None:
    fleet.good()
    with fleet.relay(tmp_path / "relay") as relay:
        before = fleet.config.stat()
        done = fleet.fetch()
        assert (done.returncode, done.stderr) == (0, "")
        assert "unchanged" in done.stdout
        assert fleet.config.stat() == before
        assert relay.status()["reloads"] == {"ok": 0, "failed": 0}


def test_a_reload_that_was_lost_is_made_up_for(fleet: Fleet, tmp_path: Path) -> None:
    """As after a SIGKILL between the rename and the reload."""
    fleet.good(idle=600.0)
    with fleet.relay(tmp_path / "relay") as relay:
        fleet.metadata.publish(text := fleet.toml(idle=900.0))
        fleet.config.write_text(text)
        assert fleet.fetch().returncode == 0
        assert relay.status()["reloads"]["ok"] == 1
        assert fleet.fetch().returncode == 0
        assert relay.status()["reloads"]["ok"] == 1


def test_broken_user_data_leaves_the_relay_healthy_and_is_told(fleet: Fleet, tmp_path: Path) -> None:
    text = fleet.good()
    with fleet.relay(tmp_path / "relay") as relay, connect(relay.address()) as client:
        wait_source(relay, up=True)
        fleet.metadata.publish(fleet.toml(more="[limits]\nmax_conections = 5\n"))
        done = fleet.fetch()
        assert done.returncode == 2
        assert "limits.max_conections" in done.stderr
        assert "max_connections" in done.stderr
        assert fleet.config.read_text() == text
        error = wait_source(relay, up=False)["error"]
        assert "limits.max_conections" in error
        status, body = relay.get("/healthz", "health")
        assert status == 200
        assert '"ApplicationHealthState": "Healthy"' in body
        assert '"up": false' in body
        assert "limits.max_conections" in body
        assert relay.get("/readyz", "health")[0] == 200
        assert relay.metrics().value("relay_settings_source_up") == 0
        for _ in range(3):
            assert fleet.fetch().returncode == 2
        assert passes(client, b"still")
        (line,) = relay.told("settings source fails")
        assert "limits.max_conections" in line["error"]
        fleet.metadata.publish(text)
        assert fleet.fetch().returncode == 0
        wait_source(relay, up=True, error="")
        relay.told("settings source works again")
        assert len(relay.events("settings source fails")) == 1
        assert relay.status()["reloads"] == {"ok": 0, "failed": 0}


def test_settings_that_only_a_restart_applies_are_told_and_not_tried_each_minute(fleet: Fleet, tmp_path: Path) -> None:
    fleet.good()
    with fleet.relay(tmp_path / "relay") as relay:
        fleet.metadata.publish(fleet.toml().replace("workers = 1", "workers = 2"))
        relay.expected_errors.add("reload failed")
        for _ in range(3):
            done = fleet.fetch()
            assert done.returncode == 1
            assert "workers: is 1, and only a restart can make it 2" in done.stderr
        assert relay.status()["reloads"] == {"ok": 0, "failed": 1}
        assert "workers" in wait_source(relay, up=False)["error"]
    with fleet.relay(tmp_path / "again") as relay:  # a restart applies them
        assert len(relay.status()["workers"]) == 2
        assert fleet.fetch().returncode == 0
        wait_source(relay, up=True)


def test_a_relay_that_drains_reloads_later(fleet: Fleet, tmp_path: Path) -> None:
    fleet.good(idle=600.0)
    with fleet.relay(tmp_path / "relay") as relay:
        relay.post("/drain")
        fleet.metadata.publish(fleet.toml(idle=900.0))
        done = fleet.fetch()
        assert done.returncode == 0
        assert "drains" in done.stdout
        relay.wait_phase("drained")
        assert relay.post("/undrain")[0] == 200
        assert fleet.fetch().returncode == 0
        assert relay.status()["reloads"] == {"ok": 1, "failed": 0}


def test_settings_that_would_cut_the_machine_off_from_its_source_are_refused(fleet: Fleet) -> None:
    text = fleet.good()
    del fleet.environ["RELAY_AZURE__METADATA_URL"]
    azure = f'[azure]\nmetadata_url = "{fleet.metadata.url}"\n'
    fleet.config.write_text(text.replace("[[listeners]]", azure + "[[listeners]]"))
    fleet.metadata.publish(text)
    done = fleet.fetch()
    assert done.returncode == 2
    assert "RELAY_AZURE__METADATA_URL" in done.stderr


def test_a_relay_whose_settings_nobody_fetches_says_nothing_about_it(fleet: Fleet, tmp_path: Path) -> None:
    fleet.config.write_text(fleet.toml())
    with fleet.relay(tmp_path / "relay") as relay:
        assert relay.status()["settings_source"] is None
        assert "settings_source" not in relay.get("/healthz", "health")[1]
        assert "relay_settings_source_up" not in relay.get("/metrics")[1]


def test_a_report_that_gets_old_counts_as_a_failure(fleet: Fleet, tmp_path: Path) -> None:
    fleet.good()
    report = fleet.state.read_text()
    boot = fleet.report()["checked_boot"]
    with fleet.relay(tmp_path / "relay") as relay:
        wait_source(relay, up=True)
        fleet.state.write_text(report.replace(str(boot), str(float(boot) - 3600)))
        assert "relay-settings.timer" in wait_source(relay, up=False)["error"]
        relay.told("settings source fails")
        fleet.state.unlink()
        wait_until(lambda: relay.status()["settings_source"] is None)


def test_a_state_file_that_is_no_report_disturbs_nobody(fleet: Fleet, tmp_path: Path) -> None:
    fleet.good()
    fleet.state.write_text('{"up": "yes"}')
    with fleet.relay(tmp_path / "relay") as relay:
        wait_until(lambda: any("cannot use" in line["event"] for line in relay.log_lines()))
        assert relay.status()["settings_source"] is None
        assert fleet.fetch().returncode == 0
        wait_source(relay, up=True)
        assert source(relay)["checked_at"].endswith("Z")
