"""Has the running relay take over the settings that are in the file, if it has others in force.

It asks the admin port, POST /reload, and not `systemctl reload`: the answer says what stood in the way, and it works
in a container too. Nor could it use systemctl from relay-settings.service, which is ordered before relay.service: a
reload would wait for the end of the very unit that waits for it. The port is on loopback, so that it does not matter
as whom relay runs (DynamicUser=). Without an admin port systemd is told to reload, and nobody waits for the result.

What is in force is compared by its hash each time, so that a reload is also made up for that was lost because this
command was killed, or that a drain refused.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from relay.commands.admin_client import NoAdminPort, Refused, Unreachable, at_bind, fetch, post
from relay.settings.fingerprint import fingerprint
from relay.settings.model import Settings
from relay.supervisor.settings_source import Report

SYSTEMCTL = 10.0  # seconds


@dataclass(frozen=True, slots=True)
class Takeover:
    """What the running relay said: `error` is why the settings are not in force, `text` what was done."""

    text: str
    error: str = ""
    reloaded: str = ""  # for the report: what must not be asked again
    reload_error: str = ""


def take_over(settings: Settings, bind: str, written: bool, before: Report) -> Takeover:
    """Reload the relay at `bind`, the value of admin.bind that it runs with, if it has other settings than these.

    `written`: the file has just been replaced. `before` is the last report: a reload that the same process has
    refused, or carried out, is not asked for again.
    """
    try:
        admin = at_bind(bind)
    except NoAdminPort as error:
        return _without_admin(str(error), written)
    try:
        status: Mapping[str, object] = fetch(admin)
        pid, drain = status["pid"], status.get("drain")
        in_force = status.get("settings_hash")  # None: an older version, which does not say it
        here = fingerprint(settings)
        if in_force == here or (in_force is None and not written):
            return Takeover("in force")
        asked = f"{pid} {here}"
        if before.reloaded == asked and not written:
            return Takeover("in force" if not before.reload_error else "not in force", before.reload_error, asked,
                            before.reload_error)  # fmt: skip
        if drain is not None:
            return Takeover("the running relay drains; it reloads after that, if it is still there")
        try:
            post(admin, "/reload")
        except Refused as error:
            why = f"not in force: the running relay refuses them: {'; '.join(str(error).splitlines())}"
            return Takeover("not in force", why, asked, why)
        return Takeover("the running relay has reloaded", reloaded=asked)
    except Unreachable as error:
        if error.gone:
            return Takeover("no relay runs that would have to reload")
        return Takeover("not in force", f"not known whether they are in force: {error}")


def _without_admin(why: str, written: bool) -> Takeover:
    if not written:
        return Takeover("in force as far as is known: there is no admin port to ask")
    if not booted() or _systemctl("is-active", "--quiet", "relay.service"):
        return Takeover(f"not reloaded: {why}")
    failed = _systemctl("--no-block", "reload", "relay.service")
    return Takeover("systemd was told to reload relay.service", f"not reloaded: {failed}" if failed else "")


def start_service() -> str:
    """Start relay.service, where it is enabled: the machine has its first settings. Returns what was done."""
    if not booted() or _systemctl("is-enabled", "--quiet", "relay.service"):
        return "relay.service is not enabled, and was not started"
    # It is ordered after the unit that this process is of, so it starts when this process has ended.
    failed = _systemctl("--no-block", "start", "relay.service")
    return f"relay.service was not started: {failed}" if failed else "relay.service starts"


def booted() -> bool:
    """Whether systemd runs this machine, and this user may tell it what to do."""
    return os.geteuid() == 0 and Path("/run/systemd/system").is_dir()


def _systemctl(*arguments: str) -> str:
    """Run systemctl(1); returns why it failed, or an empty string."""
    with suppress(subprocess.TimeoutExpired):
        try:
            done = subprocess.run(
                ["systemctl", *arguments],
                check=False,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=SYSTEMCTL,
            )
        except OSError as error:
            return (error.strerror or str(error)).lower()
        return "" if done.returncode == 0 else " ".join(done.stderr.split()) or f"exit status {done.returncode}"
    return f"systemctl did not end within {SYSTEMCTL:g} s"
