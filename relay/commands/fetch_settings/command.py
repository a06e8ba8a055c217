"""`relay fetch-settings`: the command line's part, with its messages and exit status."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path

from relay.commands.fetch_settings.attempt import Outcome, Target
from relay.commands.fetch_settings.takeover import start_service
from relay.core.backoff import delay
from relay.log_writer import NOTICE, mark_output

TRIES = 3  # in a run, where another attempt may succeed
FIRST, LONGEST = 1.0, 4.0  # seconds between them


def run(path: Path, *, service: bool) -> int:
    """Fetch the settings into `path`; returns the exit status.

    `service`: as a unit runs it, again and again. A machine without valid settings then answers on its health port
    until it has some, and its relay.service is started; and a failure that lasts is printed once.
    """
    target = Target(path.absolute(), os.environ)
    if not service:
        return _tell(_several(target))
    mark_output(NOTICE)  # what is not the same each minute: the unit leaves out the rest (LogLevelMax=)
    before = target.last_report()
    if target.here().settings is not None:
        return _tell(_several(target), (before.error, before.held_back))
    from relay.commands.fetch_settings.responder import wait_for_settings  # aiohttp, which no other run needs

    bind = target.text("health", "bind")
    outcome = asyncio.run(wait_for_settings(bind, target.attempt, _complain))
    status = _tell(outcome)
    print(start_service())
    return status


def _several(target: Target) -> Outcome:
    """Attempt until it succeeds, or more attempts do not promise to, TRIES times at most."""
    outcome = target.attempt()
    for failures in range(1, TRIES):
        if not outcome.again:
            break
        time.sleep(delay(failures, FIRST, LONGEST))
        outcome = target.attempt()
    return outcome


def _tell(outcome: Outcome, said: tuple[str, str] | None = None) -> int:
    """Print what came of it, but not again what the last run has `said` (error, reason to hold back)."""
    report = outcome.report
    if said is None or said != (report.error, report.held_back) or ": written" in outcome.text:
        if outcome.problems:
            _complain("\n".join(outcome.problems))
        if outcome.text:
            print(outcome.text)
        elif outcome.settings is not None:
            print(f"the settings that are there stay, {report.hash or 'of unknown hash'}")
    return (2 if outcome.wrong else 1) if outcome.problems else 0


def _complain(text: str) -> None:
    for line in text.splitlines():
        print(f"relay: {line}", file=sys.stderr)
