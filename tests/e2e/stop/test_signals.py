"""Signals at any moment, from any parent: those with a meaning are served, no other one ends anything."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest

from relay.process import IGNORED, SERVED, signal_name
from tests.support.clients import connect, drain, echoes, exchange
from tests.support.harness import Relay, Start
from tests.support.observe import wait_until
from tests.support.programs import RELAY, ROOT, START, environment, launched
from tests.support.relay_toml import listener, settings
from tests.support.surroundings import signal_set, signals
from tests.support.upstreams import Echo, unanswering

WINDOW = "[drain]\nwindow = 60\n"
HANDLED = {*SERVED, *IGNORED}


def toml(echo: Echo, workers: int = 1) -> str:
    return settings(listener(echo.address), workers=workers, tables=WINDOW)


# --- before there are handlers ---------------------------------------------------------------------------------------


def test_a_signal_that_comes_before_everything_else_is_served(echo: Echo, start: Start) -> None:
    """SIGHUP waits in the kernel until there is a handler, and so do those that are ignored."""
    early = (signal.SIGHUP, signal.SIGUSR2, signal.SIGRTMIN)
    relay = start(toml(echo), wrapper=signals(blocked=early, pending=early))
    relay.told("reloaded")
    wait_until(lambda: len(relay.events("signal ignored")) == 2, what="the log saying so")
    assert echoes(relay.address())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_one_that_asks_for_the_end_comes_before_everything_else(
    echo: Echo, engine: str, tmp_path: Path, number: signal.Signals
) -> None:
    path = tmp_path / "relay.toml"
    path.write_text(toml(echo, workers=2))
    done = subprocess.run(
        launched([*signals(blocked=[number], pending=[number]), *RELAY, "run", "--config", str(path)]),
        cwd=ROOT,
        env={**environment(), "RELAY_ENGINE": engine, "RELAY_DRAIN__ANNOUNCE": "0.0"},
        capture_output=True,
        text=True,
        timeout=START,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert '"stopped"' in done.stdout
    assert '"error"' not in done.stdout


def test_a_signal_while_it_starts_does_not_end_it(echo: Echo, tmp_path: Path) -> None:
    """From the first statement on; it is looked for in /proc when that has been reached."""
    path = tmp_path / "relay.toml"
    path.write_text(toml(echo))
    log = tmp_path / "relay.log"
    with log.open("wb") as out:
        line = launched([*RELAY, "run", "--config", str(path)])
        process = subprocess.Popen(line, cwd=ROOT, env=environment(), stdin=subprocess.DEVNULL, stdout=out)
    try:
        wait_until(lambda: signal_set(process.pid, "SigBlk") >= HANDLED, START, "signals held")
        assert signal.SIGHUP not in signal_set(process.pid, "SigCgt"), "held long before there are handlers"
        for number in (signal.SIGHUP, *IGNORED):
            process.send_signal(number)
        wait_until(lambda: '"reloaded"' in log.read_text(), START, "the log saying so")
        process.send_signal(signal.SIGINT)
        assert process.wait(START) == 0
    finally:
        process.kill()
        process.wait()


# --- what the parent hands down --------------------------------------------------------------------------------------


def test_signals_that_the_parent_blocks_are_served(echo: Echo, start: Start) -> None:
    relay = start(toml(echo), wrapper=signals(blocked=set(signal.valid_signals())))
    for pid in [relay.process.pid, *relay.worker_pids()]:
        assert signal_set(pid, "SigBlk") == set()
    relay.signal(signal.SIGHUP)
    relay.told("reloaded")
    relay.signal(signal.SIGTERM)
    assert relay.wait() == 0


def test_signals_that_the_parent_ignores_are_served(echo: Echo, start: Start) -> None:
    """Like nohup, a shell's `&`, and a parent that does not want to know how its children end."""
    ignored = (*HANDLED, signal.SIGCHLD, signal.SIGPIPE)
    relay = start(toml(echo, workers=2), wrapper=signals(ignored=ignored))
    relay.expected_errors.add("worker died")
    victim = relay.worker_pids()[0]
    os.kill(victim, signal.SIGKILL)
    (line,) = relay.told("worker died")
    assert (line["pid"], line["how"]) == (victim, "signal SIGKILL")
    relay.wait_status(lambda status: status["workers"][0]["pid"] not in (None, victim), what="a successor")
    relay.signal(signal.SIGHUP)
    relay.told("reloaded")
    relay.signal(signal.SIGINT)
    assert relay.wait() == 0


@pytest.mark.parametrize(
    ("surroundings", "seconds", "status"),
    [(signals(blocked=[signal.SIGINT]), 60.0, 130), (signals(ignored=[signal.SIGINT]), 2.0, 1)],
    ids=["blocked", "ignored"],
)
def test_a_command_can_be_interrupted_unless_the_parent_ignores_the_signal(
    tmp_path: Path, surroundings: list[str], seconds: float, status: int
) -> None:
    """A shell ignores SIGINT for what it runs in the background: that goes on to its end."""
    with unanswering() as silent:
        path = tmp_path / "relay.toml"
        path.write_text(settings(listener(silent), tables=f"[dial]\nconnect_timeout = {seconds}\n"))
        line = launched([*surroundings, *RELAY, "check", "--connect", "--config", str(path)])
        said = tmp_path / "said"
        with said.open("wb") as out:
            environ = {**environment(), "PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"}
            process = subprocess.Popen(line, cwd=ROOT, env=environ, stdout=out)
        try:
            wait_until(lambda: "listener main" in said.read_text(), START, "the last line before it dials")
            process.send_signal(signal.SIGINT)
            try:
                assert process.wait(START) == status
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGABRT)  # the stacks of all threads, on standard error
                process.wait(START)
                raise
            assert ("no answer in 2 s" in said.read_text()) is (status == 1)
        finally:
            process.kill()
            process.wait()


# --- what they mean --------------------------------------------------------------------------------------------------


def test_sigusr1_is_like_the_first_sigterm(echo: Echo, start: Start) -> None:
    relay = start(toml(echo, workers=2))
    with connect(relay.address()) as client:
        assert exchange(client) == b"ping"
        relay.signal(signal.SIGUSR1, to="unit")
        (line,) = relay.told("draining")
        assert (line["reason"], line["ends"]) == ("SIGUSR1", True)
        relay.signal(signal.SIGUSR1, to="unit")  # which cuts nothing short
        relay.wait_phase("closing")
        assert exchange(client) == b"ping"
        relay.signal(signal.SIGTERM)  # the second request to end
        assert drain(client) == b""
    assert relay.wait() == 0


def test_sigusr1_after_sigterm_cuts_nothing_short(echo: Echo, start: Start) -> None:
    relay = start(toml(echo))
    with connect(relay.address()) as client:
        assert exchange(client) == b"ping"
        relay.signal(signal.SIGTERM)
        relay.wait_phase("closing")
        relay.signal(signal.SIGUSR1)
        relay.signal(signal.SIGUSR2)
        relay.told("signal ignored")
        assert exchange(client) == b"ping"
    assert relay.wait() == 0


def test_a_signal_without_a_meaning_is_a_line_and_nothing_else(echo: Echo, start: Start) -> None:
    relay = start(toml(echo, workers=2))
    with ExitStack() as stack:
        clients = [stack.enter_context(connect(relay.address())) for _ in range(10)]
        for number in IGNORED:
            for pid in [relay.process.pid, *relay.worker_pids()]:
                os.kill(pid, number)
        lines = relay.told("signal ignored", len(IGNORED))
        assert {line["signal"] for line in lines} == {signal_name(number) for number in IGNORED}
        assert {"SIGUSR2", "SIGALRM", "SIGPWR", "SIGIO", "SIGRTMIN", "SIGRTMIN+1", "SIGRTMAX"} <= {
            line["signal"] for line in lines
        }
        assert all(exchange(client) == b"ping" for client in clients)
    assert not relay.events("worker died")


def test_a_worker_that_has_just_been_started_is_as_deaf_as_the_others(echo: Echo, start: Start) -> None:
    relay = start(toml(echo, workers=2))
    relay.expected_errors.add("worker died")
    first = relay.worker_pids()
    os.kill(first[0], signal.SIGKILL)
    status = relay.wait_status(lambda status: status["workers"][0]["pid"] not in (None, first[0]), what="a successor")
    successor = status["workers"][0]["pid"]
    for number in HANDLED:  # an interpreter that has only just begun
        os.kill(successor, number)
    relay.wait_status(lambda status: status["workers"][0]["ready"], what="ready")
    assert relay.worker_pids()[0] == successor
    assert len(relay.events("worker died")) == 1
    assert signal_set(successor, "SigIgn") >= HANDLED
    assert signal_set(successor, "SigBlk") == set()


def test_signals_at_the_very_end_do_not_change_the_exit_status(echo: Echo, start: Start) -> None:
    relay = start(toml(echo))
    assert echoes(relay.address())

    def ended() -> bool:
        relay.process.send_signal(signal.SIGTERM)
        return relay.process.poll() is not None

    wait_until(ended, START, "its end")
    assert relay.wait() == 0


# --- the first process of a container --------------------------------------------------------------------------------


AS_FIRST = [shutil.which("unshare") or "unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]


def namespace_problem() -> str:
    """Why there is no PID namespace to be had; nothing if there is."""
    try:
        done = subprocess.run([*AS_FIRST, "true"], capture_output=True, text=True)
    except FileNotFoundError:
        return "unshare (util-linux) is not installed"
    return "" if done.returncode == 0 else f"no PID namespace: {done.stderr.strip()}"


needs_pid_namespace = pytest.mark.skipif(bool(namespace_problem()), reason=namespace_problem())


def children(pid: int) -> dict[int, str]:
    """The children of a process, and the state of each (proc_pid_stat(5))."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = path.read_text().rpartition(")")
        except (FileNotFoundError, ProcessLookupError):
            continue
        state, parent = rest.split()[:2]
        if int(parent) == pid:
            found[int(name.split()[0])] = state
    return found


def first_process(relay: Relay) -> int:
    """Its PID out here; the harness knows that of unshare."""
    (pid,) = children(relay.process.pid)
    return pid


@needs_pid_namespace
def test_as_pid_1_it_reaps_orphans_and_still_knows_how_its_workers_end(echo: Echo, start: Start) -> None:
    relay = start(toml(echo, workers=2), wrapper=AS_FIRST)
    relay.forget_workers()
    relay.expected_errors.add("worker died")
    pid = first_process(relay)
    workers = set(children(pid))
    assert len(workers) == 2
    orphans = "for n in 1 2 3 4 5; do (sh -c 'exit 3' &); done; (sh -c 'kill -KILL $$' &)"
    for victim in sorted(workers):
        # In the namespace, but children of processes out here: when those have ended, they are the first process's.
        subprocess.run(["nsenter", f"--target={pid}", "--pid", "sh", "-c", orphans], check=True, timeout=START)
        os.kill(victim, signal.SIGKILL)
        subprocess.run(["nsenter", f"--target={pid}", "--pid", "sh", "-c", orphans], check=True, timeout=START)
    lines = relay.told("worker died", 2)
    assert {line["how"] for line in lines} == {"signal SIGKILL"}
    relay.wait_status(lambda status: all(worker["ready"] for worker in status["workers"]), what="successors")
    wait_until(lambda: list(children(pid).values()) == ["S", "S"], what="two workers and no zombie")
    assert echoes(relay.address())
    os.kill(pid, signal.SIGTERM)
    assert relay.wait() == 0


@needs_pid_namespace
def test_as_pid_1_it_does_not_lose_what_comes_while_it_starts(echo: Echo, tmp_path: Path) -> None:
    path = tmp_path / "relay.toml"
    path.write_text(toml(echo))
    line = launched([*AS_FIRST, *RELAY, "run", "--config", str(path)])
    environ = {**environment(), "RELAY_DRAIN__ANNOUNCE": "0.0"}
    process = subprocess.Popen(line, cwd=ROOT, env=environ, stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: children(process.pid), START, "the first process")
        (pid,) = children(process.pid)
        wait_until(lambda: signal_set(pid, "SigBlk") >= HANDLED, START, "signals held")
        os.kill(pid, signal.SIGTERM)
        assert process.wait(START) == 0
    finally:
        process.kill()
        process.wait()
