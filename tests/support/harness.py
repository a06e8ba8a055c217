"""A real relay process, driven and observed as an operator would: settings, log, ports, signals, /proc.

    with Relay(tmp_path, settings) as relay:          # starts it, waits for /readyz
        with connect(relay.address()) as client: ...
        relay.wait_outcomes({"ok": 1})
                                                      # stops it, and checks its accounting

Every relay is checked when it ends: the counters, the access log and the last line of the service log must agree, no
unexpected error may be logged, and no process may be left. Nothing here looks inside the process.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal

from tests.support.observe import PATIENCE, Metrics, alive, descriptors, wait_until
from tests.support.programs import RELAY, ROOT, START, environment, launched

Json = dict[str, Any]


class Relay:
    """One relay process. Its log is a file, unless `stdout` is given.

    `admin` is the address of its admin port, for tests whose log cannot be read. `descriptors` is its descriptor limit.
    `start` waits until /readyz is 200, or with `ready=False` until all workers accept.
    """

    def __init__(
        self,
        directory: Path,
        toml: str,
        *,
        environ: Mapping[str, str] | None = None,
        stdout: int | IO[bytes] | None = None,
        admin: tuple[str, int] | None = None,
        descriptors: int = 0,
        wrapper: Sequence[str] = (),
        ready: bool = True,
    ) -> None:
        self.config = directory / "relay.toml"
        self.config.write_text(toml)
        self.log = directory / "relay.log"
        self.errors = directory / "relay.err"
        self.expected_errors: set[str] = set()  # error events that the test provokes
        self._stdout = stdout
        self._environ = {**environment(), **(environ or {})}
        self._descriptors = descriptors
        self._wait_ready = ready
        self._wrapper = wrapper  # a command in front of the relay's command line
        self._process: subprocess.Popen[bytes] | None = None
        self._announced: dict[str, list[str]] = {}
        self._blind = admin is not None
        if admin is not None:
            self._announced["admin"] = [f"{admin[0]}:{admin[1]}"]
        self._seen: set[int] = set()  # PIDs of all workers seen so far
        self._checked = False

    # --- life -----------------------------------------------------------------------------------------------------

    def __enter__(self) -> Relay:
        try:
            return self.start()
        except BaseException:
            self.end()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.stop()
        finally:
            self.end()

    def start(self) -> Relay:
        """Start it and wait until it takes traffic."""
        line = launched([*self._wrapper, *RELAY, "run", "--config", str(self.config)], self._descriptors)
        with self.log.open("ab") as log, self.errors.open("ab") as errors:
            self._process = subprocess.Popen(
                line,
                cwd=ROOT,
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=log if self._stdout is None else self._stdout,
                stderr=errors,
                start_new_session=True,  # a test may send a signal to the whole group
            )
        wait_until(self._ready, START, lambda: f"relay ready; it says {self.said()}")
        for item in self.status()["listeners"]:
            self._announced[item["name"]] = item["bind"]
        self.worker_pids()
        return self

    def _ready(self) -> bool:
        assert self.process.poll() is None, f"the relay ended, exit status {self.process.returncode}: {self.said()}"
        if not self._blind:
            self._announced = {line["listener"]: line["bind"] for line in self.events("listening")}
            if not self.events("ready" if self._wait_ready else "worker ready"):
                return False
        try:
            if not self._wait_ready:
                return all(worker["ready"] for worker in self.status()["workers"])
            return self.get("/readyz")[0] == 200
        except OSError:
            return False

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "not started"
        return self._process

    def signal(self, number: signal.Signals, *, to: Literal["supervisor", "terminal", "unit"] = "supervisor") -> None:
        """Send a signal to the supervisor, to its process group as a terminal does, or to every process of the unit."""
        workers = self.worker_pids() if to == "unit" else []
        if to == "supervisor":
            self.process.send_signal(number)
        else:
            os.killpg(self.process.pid, number)
        for pid in workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def wait(self, timeout: float = PATIENCE) -> int:
        """Wait until the process has ended; returns the exit status."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {timeout:g} s; it says {self.said()}") from None

    def stop(self) -> None:
        """Stop it at once with SIGINT, unless it has ended, and check its accounting."""
        if self._checked:
            return
        if self.process.poll() is None:
            self.worker_pids()
            self.signal(signal.SIGINT)
        assert self.wait() == 0, self.said()
        self.check()

    def kill(self) -> None:
        """Kill the supervisor; its accounting is not checked then."""
        self.worker_pids()
        self.process.kill()
        self.process.wait()
        self._checked = True

    def end(self) -> None:
        """Kill whatever is left of it, in any state."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        for pid in self._seen:
            if alive(pid) and b"relay.worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)

    def check(self) -> None:
        """Check the accounting of a relay that has ended, from its log."""
        assert self.errors.read_text() == ""
        wait_until(lambda: not any(map(alive, self._seen)), what=f"workers {self._seen} gone")
        self._checked = True
        if self._blind:
            return
        lines = self.log_lines()
        bad = [line for line in lines if line.get("level") == "error" and line["event"] not in self.expected_errors]
        assert not bad, [line["event"] for line in bad[:5]]
        assert "Traceback" not in self.log.read_text()
        (last,) = [line for line in lines if line["event"] == "stopped"]
        assert last is lines[-1]
        assert last["accepted"] == sum(last["outcomes"].values()), last
        if "access = false" in self.config.read_text():
            return
        # Every connection has a line or is counted in one, except those lost with a worker that died.
        ended = [line for line in lines if line["event"] in ("connection", "refusals")]
        logged: Counter[str] = Counter()
        for line in ended:
            logged[line["outcome"]] += line.get("count", 1)
        if self.events("worker died"):
            assert logged <= Counter(last["outcomes"]), last
            return
        assert logged == Counter(last["outcomes"]), last
        for name in ("bytes_up", "bytes_down"):
            assert last[name] == sum(line[name] for line in ended), last

    # --- what it says ---------------------------------------------------------------------------------------------

    def said(self) -> str:
        """The end of its log and of its standard error."""
        return self.log.read_text()[-3000:] + self.errors.read_text()[-3000:]

    def log_lines(self) -> list[Json]:
        """All lines of the log, service and access. An incomplete last line is left out."""
        return [json.loads(line) for line in self.log.read_text().splitlines(keepends=True) if line.endswith("\n")]

    def events(self, name: str) -> list[Json]:
        """The log lines of that event so far. A line may appear a little later than its event."""
        return [line for line in self.log_lines() if line["event"] == name]

    def told(self, name: str, count: int = 1) -> list[Json]:
        """Wait for `count` log lines of that event and return them; more are an error."""
        lines = wait_until(
            lambda: found if len(found := self.events(name)) >= count else None,
            what=f"{count} lines of the log about {name}",
        )
        assert lines is not None
        assert len(lines) == count, lines
        return lines

    def access(self, count: int) -> list[Json]:
        """Wait for `count` access log lines and return them."""
        return self.told("connection", count)

    # --- what it answers ------------------------------------------------------------------------------------------

    def address(self, listener: str = "main", number: int = 0) -> tuple[str, int]:
        """Host and port of a listener, or of the admin or health port."""
        host, _, port = self._announced[listener][number].rpartition(":")
        return host.strip("[]"), int(port)

    def get(self, path: str, port: str = "admin", timeout: float = PATIENCE) -> tuple[int, str]:
        """GET from the admin or the health port: status and body."""
        connection = http.client.HTTPConnection(*self.address(port), timeout=timeout)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def post(self, path: str, headers: Mapping[str, str] | None = None) -> tuple[int, str]:
        """POST to the admin port: status and body."""
        connection = http.client.HTTPConnection(*self.address("admin"), timeout=PATIENCE)
        try:
            connection.request("POST", path, headers=dict(headers or {}))
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def wait_phase(self, phase: str) -> Json:
        """Wait until the drain is in that phase; returns the status."""
        return self.wait_status(lambda status: (status["drain"] or {}).get("phase") == phase, what=phase)

    def status(self) -> Json:
        """GET /status."""
        code, text = self.get("/status")
        assert code == 200, text
        status: Json = json.loads(text)
        return status

    def metrics(self) -> Metrics:
        """GET /metrics."""
        code, text = self.get("/metrics")
        assert code == 200, text
        return Metrics(text)

    def worker_pids(self) -> list[int]:
        """PIDs of the workers that run now."""
        pids = [item["pid"] for item in self.status()["workers"] if item["pid"] is not None]
        self._seen.update(pids)
        return pids

    def forget_workers(self) -> None:
        """Do not look for leftover workers at the end: in a PID namespace their PIDs differ from those here."""
        self._seen.clear()

    def wait_status(self, wanted: Callable[[Json], object], timeout: float = PATIENCE, what: str = "") -> Json:
        """Wait until `wanted(status)` is true; returns that status."""
        last: list[Json] = []

        def look() -> Json | None:
            last[:] = [self.status()]
            return last[0] if wanted(last[0]) else None

        found = wait_until(look, timeout, lambda: f"status {what}: {last}")
        assert found is not None
        return found

    def wait_outcomes(self, wanted: Mapping[str, int], timeout: float = PATIENCE) -> Json:
        """Wait until all connections have ended, check for exactly these outcomes, and return the status."""

        def over(status: Json) -> bool:
            return bool(status["connections"]["active"] == 0 and status["connections"]["accepted"] >= total)

        total = sum(wanted.values())
        status = self.wait_status(over, timeout, f"with {dict(wanted)}")
        found = {label: count for label, count in status["connections"]["outcomes"].items() if count}
        assert found == dict(wanted), found
        return status

    def wait_active(self, count: int, timeout: float = PATIENCE) -> Json:
        """Wait until `count` connections are open; returns the status."""
        return self.wait_status(lambda status: status["connections"]["active"] == count, timeout, f"{count} active")

    def descriptors(self) -> dict[int, int]:
        """The number of open descriptors of each worker, by PID."""
        return {pid: len(descriptors(pid)) for pid in self.worker_pids()}


Start = Callable[..., Relay]
"""The type of the fixture `start`: takes the arguments of Relay, without the directory."""
