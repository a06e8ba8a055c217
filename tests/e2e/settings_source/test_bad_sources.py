"""Whatever the metadata service, the document or the disk do: a clear line, and what ran goes on as it was."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.settings_source.fetching import FETCHED, LONG, Fleet, wait_source
from tests.support.metadata_server import Answer
from tests.support.namespace import UNSHARE, needs_mounts
from tests.support.observe import wait_until

pytestmark = pytest.mark.timeout(LONG)

GOOD = 'upstream = ["hub.example"]\n'


@contextlib.contextmanager
def talker(*said: bytes, endless: bool = False) -> Iterator[str]:
    """A server that says that to everybody, whatever the question; yields its URL."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client, _ = server.accept()
                    with client, contextlib.suppress(OSError):
                        client.recv(4096)
                        client.sendall(b"".join(said))
                        while endless:
                            client.sendall(b"QUJD" * 4096)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        thread.join(10)


def keeps(fleet: Fleet, before: str, code: int, told: str, **environ: str) -> str:
    """A fetch fails with that status and text, and leaves the file as it was; returns what it says."""
    done = fleet.fetch(environ=environ)
    assert (done.returncode, fleet.config.read_text()) == (code, before), done
    assert told in done.stderr
    assert all(line.startswith("relay: ") for line in done.stderr.splitlines())
    assert told in fleet.report()["error"]
    assert fleet.report()["up"] is False
    assert list(fleet.config.parent.glob(".*")) == []
    return done.stderr


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "user data: empty"),
        (b"upstream: hub\n", "not TOML"),
        (GOOD.encode() + b"[limit]\nmax_connections = 1\n", "limit: unknown"),
        (GOOD.encode() + b"#" * 71_680, "65536 are the most"),
        (b"#cloud-config\n", "#cloud-config"),
        (b"# nothing\n", "sets nothing"),
        (b"workers = 2\n", "upstream: not set"),
    ],
)
def test_documents_that_are_no_settings(fleet: Fleet, data: bytes, told: str) -> None:
    before = fleet.good()
    fleet.metadata.publish(data)
    keeps(fleet, before, 2, told)


def test_user_data_that_is_not_base64(fleet: Fleet) -> None:
    before = fleet.good()
    fleet.metadata.user_data.play(Answer(body=GOOD))
    keeps(fleet, before, 2, "not base64")


@pytest.mark.parametrize("status", [404, 429, 500])
def test_a_metadata_service_that_refuses(fleet: Fleet, status: int) -> None:
    before = fleet.good()
    asked = len(fleet.metadata.user_data.requests)
    fleet.metadata.user_data.play(Answer({"error": "try later"}, status=status))
    keeps(fleet, before, 1, f"HTTP status {status}")
    assert len(fleet.metadata.user_data.requests) - asked == 3  # it was tried again, within bounds


def test_one_that_is_itself_again_at_the_second_try(fleet: Fleet) -> None:
    fleet.metadata.publish(fleet.toml())
    good = fleet.metadata.user_data.next()
    fleet.metadata.user_data.play(Answer(status=500), good)
    done = fleet.fetch()
    assert (done.returncode, done.stderr) == (0, "")


def test_one_that_is_not_there(fleet: Fleet) -> None:
    before = fleet.good()
    fleet.metadata.close()
    assert "connection refused" in keeps(fleet, before, 1, "metadata service http://127.0.0.1:")
    fleet.metadata.open()


@pytest.mark.slow
@pytest.mark.parametrize("answer", [Answer(hang=True), Answer(body="QUJD", drip=True)], ids=["silent", "dripping"])
def test_one_that_is_slow(fleet: Fleet, answer: Answer) -> None:
    before = fleet.good()
    fleet.metadata.user_data.play(answer)
    keeps(fleet, before, 1, "no answer")


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (b"SSH-2.0-OpenSSH_9.6\r\n", "does not speak HTTP"),
        (b"", "does not speak HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nQUJD", "ends in the middle"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://evil.example/\r\nContent-Length: 0\r\n\r\n", "HTTP status 302"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000 + b"\r\n", "does not speak HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n\xff\xfe\x00\x01", "not base64"),
    ],
)
def test_one_that_answers_nonsense(fleet: Fleet, said: bytes, told: str) -> None:
    before = fleet.good()
    with talker(said) as url:
        keeps(fleet, before, 2 if "base64" in told else 1, told, RELAY_AZURE__METADATA_URL=url)


def test_one_whose_answer_does_not_end(fleet: Fleet) -> None:
    before = fleet.good()
    with talker(b"HTTP/1.1 200 OK\r\n\r\n", endless=True) as url:
        keeps(fleet, before, 1, "more than 131072 bytes", RELAY_AZURE__METADATA_URL=url)


def test_no_proxy_is_asked(fleet: Fleet) -> None:
    fleet.metadata.publish(fleet.toml())
    assert fleet.fetch(environ={"http_proxy": "http://127.0.0.1:9", "all_proxy": "http://127.0.0.1:9"}).returncode == 0


def test_a_second_one_waits_for_the_first_and_says_so(fleet: Fleet) -> None:
    before = fleet.good()
    descriptor = os.open(fleet.config.parent, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        done = fleet.fetch()
    finally:
        os.close(descriptor)
    assert done.returncode == 1
    assert "another `relay fetch-settings` is at work" in done.stderr
    assert fleet.config.read_text() == before
    assert fleet.fetch().returncode == 0


def test_many_at_once_leave_one_whole_file(fleet: Fleet) -> None:
    fleet.metadata.publish(text := fleet.toml())
    ones = [fleet.begin() for _ in range(4)]
    for one in ones:
        one.communicate(timeout=FETCHED)
    codes = [one.returncode for one in ones]
    assert 0 in codes
    assert set(codes) <= {0, 1}
    assert fleet.config.read_text() == text


def test_what_a_killed_one_has_left_behind_disturbs_nobody(fleet: Fleet, tmp_path: Path) -> None:
    before = fleet.good(idle=600.0)
    fleet.metadata.publish(fleet.toml(idle=900.0))
    left = fleet.config.with_name(f".{fleet.config.name}.new")
    left.write_text(before[:20])  # half of a file, as a kill during the write leaves it
    with fleet.relay(tmp_path / "relay") as relay:
        one = fleet.begin()
        wait_until(lambda: len(fleet.metadata.user_data.requests) > 1)
        one.send_signal(signal.SIGKILL)
        one.communicate()
        assert fleet.config.read_text() in (before, fleet.toml(idle=900.0))
        assert relay.get("/readyz", "health")[0] == 200
        assert fleet.fetch().returncode == 0
        assert fleet.config.read_text() == fleet.toml(idle=900.0)
        assert not left.exists()
        wait_source(relay, up=True)


@needs_mounts
def test_a_full_disk(fleet: Fleet, tmp_path: Path) -> None:
    before = fleet.good(idle=600.0)
    fleet.metadata.publish(fleet.toml(idle=900.0) + "#" * 9000)
    mapped = [option for option in UNSHARE[1:] if option != "--net"]
    disk = fleet.config.parent / "disk"
    disk.mkdir()
    fleet.config = disk / "relay.toml"
    script = (
        f"mount -t tmpfs -o size=16k none {disk} && cp {tmp_path}/relay.toml {disk}/ && "
        f"head -c 1M /dev/zero >{disk}/full 2>/dev/null; "
        f'"$@"; code=$?; ls -A {disk}; cmp {disk}/relay.toml {tmp_path}/relay.toml && exit $code'
    )
    done = fleet.fetch(wrapper=[UNSHARE[0], "--mount", *mapped, "sh", "-c", script, "sh"])
    assert done.returncode == 1, done
    assert "not written: no space left on device" in done.stderr
    assert done.stdout.split()[-2:] == ["full", "relay.toml"]
    assert "no space left" in fleet.report()["error"]
    assert (tmp_path / "relay.toml").read_text() == before


def test_a_state_file_that_cannot_be_written_stops_nothing(fleet: Fleet) -> None:
    fleet.metadata.publish(text := fleet.toml())
    done = fleet.fetch(environ={"RELAY_AZURE__SETTINGS_STATE": "/proc/none/state.json"})
    assert (done.returncode, fleet.config.read_text()) == (0, text)
    assert "azure.settings_state" in done.stderr


def test_a_link_is_followed(fleet: Fleet, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    fleet.config.symlink_to(tmp_path / "elsewhere/relay.toml")
    text = fleet.good()
    assert fleet.config.is_symlink()
    assert (tmp_path / "elsewhere/relay.toml").read_text() == text


def test_the_command_line_is_explained(fleet: Fleet) -> None:
    assert fleet.fetch("--from", "s3").returncode == 2
    done = fleet.fetch("--help")
    assert "[settings_source]" in done.stdout
    assert "percentage" in done.stdout
