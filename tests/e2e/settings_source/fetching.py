"""A fleet's machine for tests: a real `relay fetch-settings`, a stand-in metadata service, and a real relay."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support.harness import Relay
from tests.support.metadata_server import MetadataServer
from tests.support.observe import wait_until
from tests.support.programs import RELAY, ROOT, environment, free_port
from tests.support.relay_toml import listener, settings

Json = dict[str, Any]
FETCHED = 120.0  # seconds that a command may take on a busy machine: three attempts that each wait for a service
LONG = 300  # seconds that a test may take: it runs a fetch, an interpreter with all its imports, several times


class Fleet:
    """One machine: its settings file, and what is published for it."""

    def __init__(self, folder: Path, metadata: MetadataServer, upstream: tuple[str, int]) -> None:
        self.config = folder / "relay.toml"
        self.state = folder / "run/state.json"
        self.metadata = metadata
        self.upstream = upstream
        self.admin, self.health, self.port = free_port(), free_port(), free_port()
        self.environ = {
            "RELAY_ENGINE": "stream",  # not what is tested
            "RELAY_DRAIN__ANNOUNCE": "0.0",
            "RELAY_AZURE__METADATA_URL": metadata.url,
            "RELAY_AZURE__SETTINGS_STATE": str(self.state),
        }

    def toml(self, idle: float = 600.0, more: str = "") -> str:
        """Settings; `idle` tells one version of them from another."""
        bind = [f"127.0.0.1:{self.port}"]
        text = settings(listener(self.upstream, bind=bind), tables=f"[timeouts]\nidle = {idle}\n{more}")
        ports = iter((self.admin, self.health))
        return "".join(part + (f'"127.0.0.1:{next(ports, "")}"' if at < 2 else "")
                       for at, part in enumerate(text.split('"127.0.0.1:0"')))  # fmt: skip

    def line(self, *arguments: str) -> list[str]:
        """The command line of a fetch."""
        return [*RELAY, "fetch-settings", "--from", "imds", "--to", str(self.config), *arguments]

    def fetch(
        self, *arguments: str, wrapper: Sequence[str] = (), environ: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run `relay fetch-settings` to its end."""
        return subprocess.run(
            [*wrapper, *self.line(*arguments)], cwd=ROOT, capture_output=True, text=True, timeout=FETCHED,
            stdin=subprocess.DEVNULL, env={**environment(), **self.environ, **(environ or {})},
        )  # fmt: skip

    def begin(self, *arguments: str, **environ: str) -> subprocess.Popen[str]:
        """Start `relay fetch-settings`."""
        return subprocess.Popen(
            self.line(*arguments), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            stdin=subprocess.DEVNULL, env={**environment(), **self.environ, **environ},
        )  # fmt: skip

    def good(self, idle: float = 600.0) -> str:
        """Publish settings and fetch them; returns the file's text."""
        self.metadata.publish(self.toml(idle))
        done = self.fetch()
        assert done.returncode == 0, done.stderr
        return self.config.read_text()

    def relay(self, folder: Path) -> Relay:
        """A relay that runs with the file, as the unit would; to be used with `with`."""
        folder.mkdir()
        relay = Relay(folder, "", environ=self.environ)
        relay.config.unlink()
        relay.config.symlink_to(self.config)
        return relay

    def report(self) -> Json:
        """The report in the state file."""
        found: Json = json.loads(self.state.read_text())
        return found


def source(relay: Relay) -> Json:
    """What the relay says about the source of its settings."""
    found: Json = relay.status()["settings_source"]
    return found


def wait_source(relay: Relay, **wanted: object) -> Json:
    """Until the relay says that about the source of its settings."""

    def look() -> Json:
        # The relay reads a report some time after it was written, so what is wanted has to tell it from the one before.
        found: Json = relay.status()["settings_source"] or {}
        return found if wanted.items() <= found.items() else {}

    return wait_until(look, what=lambda: f"{wanted}; it is {relay.status()['settings_source']}")
