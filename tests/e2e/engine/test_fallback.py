"""Which engine runs, and what is said where io_uring is not to be had: seccomp, too little memory, an old kernel."""

from __future__ import annotations

import errno
import re
import subprocess
import sys
from pathlib import Path

import pytest

from relay.engines import choice
from relay.engines.choice import choose
from relay.engines.ring import selftest, unavailable
from relay.engines.ring.engine import RingEngine
from relay.engines.ring.reactor import Reactor
from tests.support.clients import echoes
from tests.support.harness import Relay
from tests.support.programs import RELAY, ROOT, START, environment
from tests.support.relay_toml import listener, settings
from tests.support.upstreams import Echo

REFUSED = [sys.executable, "-m", "tests.support.without_io_uring"]
NO_MEMORY = """\
import os, resource, sys
import relay.cli, relay.commands.check, relay.settings.model, relay.engines.ring.selftest
resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))
os.setgroups([]); os.setgid(65534); os.setuid(65534)
sys.exit(relay.cli.main(sys.argv[1:]))
"""


def config(tmp_path: Path, echo: Echo, engine: str) -> Path:
    path = tmp_path / f"{engine}.toml"
    path.write_text(f'engine = "{engine}"\n' + settings(listener(echo.address)))
    return path


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env=environment(), cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=START
    )


def ring_or_skip() -> None:
    if problem := choose("ring", 1).problem:
        pytest.skip(f"no ring engine here: {problem}")


@pytest.mark.parametrize(
    ("number", "words", "word"),
    [
        (errno.EPERM, "seccomp profile refuses it", "seccomp"),
        (errno.ENOSYS, "this kernel has no io_uring, or a seccomp profile", "not_in_kernel"),
    ],
)
def test_where_io_uring_is_refused_auto_runs_stream_and_says_why(
    tmp_path: Path, echo: Echo, number: int, words: str, word: str
) -> None:
    toml = 'engine = "auto"\n' + settings(listener(echo.address))
    with Relay(tmp_path, toml, wrapper=[*REFUSED, str(number)]) as relay:
        assert echoes(relay.address())
        (starting,) = relay.events("starting")
        status = relay.status()
        for said in (starting, status):
            assert said["engine"] == "stream"
            assert words in said["engine_reason"]
        # A label for people would be another series after each update of the kernel, or with each measured time.
        assert relay.metrics().labels("relay_engine_info") == {"engine": "stream", "reason": word}


def test_why_it_is_this_engine_is_one_of_the_documented_words(tmp_path: Path, echo: Echo, engine: str) -> None:
    with Relay(tmp_path, f'engine = "{engine}"\n' + settings(listener(echo.address))) as relay:
        assert relay.metrics().labels("relay_engine_info") == {
            "engine": engine,
            "reason": {"ring": "self_test_passed", "stream": "as_set"}[engine],
        }
    words = {
        choice.AS_SET,
        choice.SELF_TEST_PASSED,
        unavailable.KERNEL_TOO_OLD,
        unavailable.NOT_IN_KERNEL,
        unavailable.SYSCTL,
    }
    words |= {unavailable.SECCOMP, unavailable.MEMLOCK, unavailable.SELF_TEST_FAILED, unavailable.OTHER}
    table = (ROOT / "docs/metrics.md").read_text().partition("| reason |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == words


@pytest.mark.parametrize(
    ("number", "word"),
    [
        (errno.ENOSYS, "not_in_kernel"),
        (errno.EINVAL, "not_in_kernel"),
        (errno.EOPNOTSUPP, "not_in_kernel"),
        (errno.EACCES, "seccomp"),
        (errno.ENOMEM, "memlock"),
        (errno.EMFILE, "other"),
    ],
)
def test_every_error_has_its_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, word: str) -> None:
    monkeypatch.setattr(unavailable, "DISABLED", tmp_path / "none")
    assert unavailable.cause(OSError(number, "io_uring_setup")).word == word


def test_check_says_which_engine_and_why(tmp_path: Path, echo: Echo) -> None:
    path = str(config(tmp_path, echo, "auto"))
    refused = run(*REFUSED, str(errno.EPERM), *RELAY, "check", "--config", path)
    assert refused.returncode == 0
    assert "engine: stream, 1 worker; no io_uring: " in refused.stdout
    stream = run(*RELAY, "check", "--config", str(config(tmp_path, echo, "stream")))
    assert "engine: stream, 1 worker; engine = stream\n" in stream.stdout
    ring_or_skip()
    ring = run(*RELAY, "check", "--config", path)
    assert "engine: ring, 1 worker; io_uring on Linux " in ring.stdout


@pytest.mark.parametrize("command", ["run", "check"])
def test_the_ring_where_it_is_refused_stops_the_start_with_cause_and_remedy(
    tmp_path: Path, echo: Echo, command: str
) -> None:
    path = str(config(tmp_path, echo, "ring"))
    result = run(*REFUSED, str(errno.EPERM), *RELAY, command, "--config", path)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith(
        'relay: engine: "ring" does not work here: io_uring_setup: Operation not permitted: a seccomp'
    )
    assert line.endswith('; "auto" or "stream" does')
    assert result.stdout == ""


def test_too_little_lockable_memory_is_named(tmp_path: Path, echo: Echo) -> None:
    """RLIMIT_MEMLOCK does not concern a privileged user, so this one is nobody."""
    ring_or_skip()
    tmp_path.chmod(0o755)
    path = Path("/tmp") / f"relay-{tmp_path.name}.toml"  # pytest's own folders are closed to others
    path.write_text(config(tmp_path, echo, "ring").read_text())
    try:
        result = run(sys.executable, "-c", NO_MEMORY, "check", "--config", str(path))
    finally:
        path.unlink()
    if result.returncode == 0:
        pytest.skip("this kernel does not count rings against RLIMIT_MEMLOCK")
    assert result.returncode == 1, result
    assert "RLIMIT_MEMLOCK is 65536 bytes; raise LimitMEMLOCK (systemd) or `ulimit -l` to 8 MiB" in result.stderr


def test_an_old_kernel_is_named() -> None:
    with pytest.raises(
        selftest.Failed, match=r"Linux 5\.15\.0-91-generic is too old for it: 6\.1 or newer is needed"
    ) as failed:
        selftest.run("5.15.0-91-generic")
    assert failed.value.word == "kernel_too_old"


@pytest.mark.parametrize(("level", "words"), [("2", "is 2; `sysctl"), ("1", "wants CAP_SYS_ADMIN or the group")])
def test_the_sysctl_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, level: str, words: str) -> None:
    disabled = tmp_path / "io_uring_disabled"
    disabled.write_text(f"{level}\n")
    monkeypatch.setattr(unavailable, "DISABLED", disabled)
    word, said = unavailable.cause(PermissionError(errno.EPERM, "Operation not permitted"))
    assert word == "sysctl"
    assert "kernel.io_uring_disabled" in said
    assert words in said


def test_a_ring_for_every_worker_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a user may lock into memory is for all workers together."""
    ring_or_skip()
    made = 0

    class Third(Reactor):
        def __init__(self) -> None:
            nonlocal made
            if made == 2:
                raise OSError(errno.ENOMEM, "io_uring_setup: Cannot allocate memory")
            made += 1
            super().__init__()

    monkeypatch.setattr("relay.engines.ring.selftest.Reactor", Third)
    with pytest.raises(selftest.Failed, match=r"2 of 3 rings can be had: .*: RLIMIT_MEMLOCK is .*; raise LimitMEMLOCK"):
        selftest.run("6.18.0", 3)


def test_a_ring_that_loses_bytes_does_not_pass_its_self_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """A defect that a kernel might have: the rest of a send that fell short is gone."""
    ring_or_skip()
    monkeypatch.setattr(RingEngine, "_on_send", lambda *_: None)
    with pytest.raises(selftest.Failed, match=r"self-test, short send: ") as failed:
        selftest.run("6.18.0")
    assert failed.value.word == "self_test_failed"
