"""Settings in a blob: read with the managed identity, by ETag, under the same checks and in the same order."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from relay.settings.file_reader import MAX_FILE
from tests.e2e.settings_source.fetching import LONG, Fleet, wait_source
from tests.support.blob_server import BlobServer
from tests.support.metadata_server import Answer
from tests.support.namespace import needs_mounts

pytestmark = [needs_mounts, pytest.mark.timeout(LONG)]

CLIENT = "f0a1b2c3-0000-4000-8000-0123456789ab"


@pytest.fixture
def blob(tmp_path: Path, fleet: Fleet) -> Iterator[BlobServer]:
    with BlobServer(tmp_path) as server:
        server.put(fleet.toml())
        name(fleet, server)
        yield server


def name(fleet: Fleet, blob: BlobServer, more: str = "") -> None:
    """Publish user data that names the blob."""
    fleet.metadata.publish(f'[settings_source]\nblob = "{blob.url}"\n{more}')


def fetch(fleet: Fleet, blob: BlobServer) -> subprocess.CompletedProcess[str]:
    return fleet.fetch(wrapper=blob.wrapper, environ=blob.environ)


def test_it_is_read_once_and_asked_for_by_its_etag(fleet: Fleet, blob: BlobServer, tmp_path: Path) -> None:
    more = "".join(f'  "10.{n >> 8 & 255}.{n & 255}.0/24",\n' for n in range(9000))
    blob.put(fleet.toml(more=f'[access]\nallow = [\n  "127.0.0.0/8",\n{more}]\n'))
    assert len(blob.content) > 65_536
    done = fetch(fleet, blob)
    assert (done.returncode, done.stderr) == (0, "")
    assert fleet.config.read_bytes() == blob.content
    with fleet.relay(tmp_path / "relay") as relay:
        assert fetch(fleet, blob).returncode == 0
        blob.put(fleet.toml(idle=900.0))
        done = fetch(fleet, blob)
        assert "has reloaded" in done.stdout
        assert fleet.config.read_bytes() == blob.content
        wait_source(relay, up=True)
    first, second, third = blob.requests
    assert [one.status for one in blob.requests] == [200, 304, 200]
    assert (first.condition, bool(second.condition)) == ("", True)
    assert third.condition == second.condition
    assert first.version >= "2017-11-09"
    (request, *_) = fleet.metadata.token.requests
    assert "resource=https%3A%2F%2Fstorage.azure.com%2F" in request.path
    assert "client_id" not in request.path


def test_the_identity_may_be_named(fleet: Fleet, blob: BlobServer) -> None:
    name(fleet, blob, f'client_id = "{CLIENT}"\n')
    assert fetch(fleet, blob).returncode == 0
    assert fleet.metadata.token.requests[0].path.endswith(f"&client_id={CLIENT}")


def test_an_edited_file_is_replaced_although_the_blob_is_the_same(fleet: Fleet, blob: BlobServer) -> None:
    assert fetch(fleet, blob).returncode == 0
    fleet.config.write_text(fleet.toml(idle=1.0))
    assert fetch(fleet, blob).returncode == 0
    assert fleet.config.read_bytes() == blob.content
    assert [one.condition for one in blob.requests] == ["", ""]


def test_a_changed_blob_without_an_etag_is_taken(fleet: Fleet, blob: BlobServer) -> None:
    blob.etag = False
    assert fetch(fleet, blob).returncode == 0
    blob.put(fleet.toml(idle=900.0))
    assert fetch(fleet, blob).returncode == 0
    assert fleet.config.read_bytes() == blob.content
    assert fleet.report()["etag"] == ""


@pytest.mark.parametrize(
    ("status", "code", "told"),
    [(404, 1, "not there"), (403, 1, "Storage Blob Data Reader"), (304, 1, "HTTP status 304"), (500, 1, "status 500")],
)
def test_a_blob_that_cannot_be_read(fleet: Fleet, blob: BlobServer, status: int, code: int, told: str) -> None:
    assert fetch(fleet, blob).returncode == 0
    before = fleet.config.read_bytes()
    fleet.state.unlink()  # so that it is asked without a condition
    blob.status = status
    done = fetch(fleet, blob)
    assert (done.returncode, fleet.config.read_bytes()) == (code, before)
    assert told in done.stderr
    assert "blob account/settings/relay.toml" in done.stderr
    assert fleet.report()["up"] is False
    assert told in fleet.report()["error"]


def test_a_mistake_in_a_blob_is_named_with_its_line(fleet: Fleet, blob: BlobServer) -> None:
    blob.put("workers = 2\nupstream: hub\n")
    done = fetch(fleet, blob)
    assert done.returncode == 2
    assert "relay.toml: line 2" in done.stderr
    assert not fleet.config.exists()


def test_a_blob_that_is_longer_than_settings_may_be(fleet: Fleet, blob: BlobServer) -> None:
    blob.put(b"#" * (MAX_FILE + 1))
    done = fetch(fleet, blob)
    assert done.returncode == 1
    assert f"more than {MAX_FILE} bytes" in done.stderr


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (Answer({"error": "invalid_request", "error_description": "Identity not found"}, status=400), "Identity not"),
        (Answer({}), "no token"),
        (Answer(body="no JSON"), "not a JSON object"),
        (Answer({"access_token": "a\r\nb"}), "no token"),
    ],
)
def test_no_token(fleet: Fleet, blob: BlobServer, answer: Answer, told: str) -> None:
    fleet.metadata.token.play(answer)
    done = fetch(fleet, blob)
    assert done.returncode == 1
    assert told in done.stderr
    assert blob.requests == []


def test_the_token_is_for_the_owner_of_the_certificate_alone(fleet: Fleet, blob: BlobServer) -> None:
    done = fleet.fetch(wrapper=blob.wrapper)  # does not know the server's authority
    assert done.returncode == 1
    assert "certificate" in done.stderr
    assert blob.requests == []


def test_a_part_of_the_fleet_takes_new_settings_first(fleet: Fleet, blob: BlobServer, tmp_path: Path) -> None:
    assert fetch(fleet, blob).returncode == 0
    before = fleet.config.read_bytes()
    with fleet.relay(tmp_path / "relay") as relay:
        blob.put(fleet.toml(idle=900.0))
        name(fleet, blob, 'percentage = 0\ncanary_tag = "ring:canary"\n')
        for _ in range(2):
            done = fetch(fleet, blob)
            assert done.returncode == 0
            assert "held back" in done.stdout
        assert fleet.config.read_bytes() == before
        relay.told("settings held back")
        held = wait_source(relay, up=True)["held_back"]
        assert "0 to" not in held
        assert "no tag ring:canary" in held
        assert [one.status for one in blob.requests] == [200, 200, 304]
        fleet.metadata.be(ring="canary")
        done = fetch(fleet, blob)
        assert (done.returncode, fleet.config.read_bytes()) == (0, blob.content)
        wait_source(relay, up=True, held_back="")
        fleet.metadata.be()
        name(fleet, blob, "percentage = 0\n")
        assert fetch(fleet, blob).returncode == 0  # what it has taken, it keeps
        assert fleet.config.read_bytes() == blob.content
        blob.put("not = = toml")
        assert fetch(fleet, blob).returncode == 2  # a mistake is told by all, whosever turn it is
