"""One attempt to bring the settings file up to what is published: read, check, write, reload, report.

Whatever fails leaves the file, and the relay that runs, as they are.
"""

from __future__ import annotations

import contextlib
import hashlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from relay.commands.fetch_settings import blob, place
from relay.commands.fetch_settings.http import FetchFailed
from relay.commands.fetch_settings.metadata import Metadata
from relay.commands.fetch_settings.takeover import take_over
from relay.core.rollout import held_back, is_partial
from relay.core.user_data import Malformed, Source, split
from relay.log_writer import timestamp
from relay.settings.file_reader import Included, read_apart, read_included_apart
from relay.settings.fingerprint import fingerprint
from relay.settings.model import Settings, SettingsError, load, value
from relay.settings.sources import EnvironSource, FileSource, build
from relay.supervisor.settings_source import Report, now, parse

MAX_ERROR = 2000  # characters of a report's error


class Here(NamedTuple):
    """The settings file as it is; `settings` is None where it has none that relay would run with."""

    content: bytes
    settings: Settings | None
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of an attempt. `settings` are those in the file afterwards; None: none that relay would run with."""

    report: Report
    settings: Settings | None
    text: str  # what was done
    problems: tuple[str, ...] = ()  # why it failed, a line each
    wrong: bool = False  # what is published is wrong on every machine
    again: bool = False  # another attempt may succeed within seconds


class _Fetched(NamedTuple):
    """The published settings. `content` is None if they are those in the file, or those that were held back before."""

    content: bytes | None
    source: Source
    etag: str = ""
    held_back: str = ""  # why they are held back still


class Target:
    """The settings file `path`, with what the environment and the file itself say about the way to its source."""

    def __init__(self, path: Path, environ: Mapping[str, str]) -> None:
        self.path = path
        self._environ = dict(environ)
        self.state = self.text("azure", "settings_state")

    def text(self, section: str, name: str) -> str:
        """One setting of type string, from the environment, else from the file, else its default.

        Mistakes elsewhere do not matter: a machine must find its source, and its health port, with a file that is wrong
        or not there.
        """
        table = value(build(Settings), section)
        sources: tuple[Callable[[], dict[str, Any]], ...] = (
            lambda: EnvironSource(Settings, self._environ).values,
            lambda: FileSource(Settings, self.path, read_apart).values,  # a process of its own: only where it is needed
        )
        for values in sources:
            found = values().get(section, {}).get(name)
            if isinstance(found, str):
                with contextlib.suppress(ValueError):
                    table = type(table)(**{name: found})
                    break
        return str(getattr(table, name))

    def here(self) -> Here:
        """The settings file as it is."""
        kept: list[bytes] = []

        def read(path: Path) -> bytes:
            kept.append(read_apart(path))
            return kept[-1]

        try:
            settings = load(self.path, self._environ, read=read, read_included=read_included_apart)
            return Here(kept[-1], settings, ())
        except SettingsError as error:
            return Here(kept[-1] if kept else b"", None, tuple(error.problems))

    def _included_beside_the_file(self, _folder: Path, patterns: Sequence[str]) -> list[Included]:
        """Read what published settings include: files that are on this machine, beside the settings file."""
        return read_included_apart(self.path.parent, patterns)

    def last_report(self) -> Report:
        """The last report; an empty one if there is none."""
        try:
            return parse(Path(self.state).read_text())
        except (OSError, ValueError):
            return Report()

    def attempt(self) -> Outcome:
        """Fetch and apply the settings once. Raises nothing that an operator could do something about."""
        try:
            with place.locked(self.path):
                outcome = self._locked(self.last_report())
                self._write_report(outcome.report)
                return outcome
        except FetchFailed as error:  # another attempt is under way: the report is its affair
            report = self.last_report()
            return Outcome(report, self.here().settings, "", tuple(error.problems), error.wrong, error.again)

    def _locked(self, before: Report) -> Outcome:
        here = self.here()
        report = replace(
            before, up=False, error="", held_back="", checked_at=timestamp(time.time()), checked_boot=now(),
            hash=fingerprint(here.settings) if here.settings is not None else "",
        )  # fmt: skip
        try:
            return self._fetch(here, before, report)
        except (FetchFailed, Malformed) as error:
            failed = error if isinstance(error, FetchFailed) else FetchFailed(str(error), wrong=True)
            report = replace(report, error="; ".join(failed.problems)[:MAX_ERROR])
            return Outcome(report, here.settings, "", tuple(failed.problems), failed.wrong, failed.again)

    def _fetch(self, here: Here, before: Report, report: Report) -> Outcome:
        """Raises FetchFailed and Malformed."""
        metadata = Metadata(self.text("azure", "metadata_url"))
        fetched = self._published(metadata, here, before)
        source, settings, content, written = fetched.source, here.settings, here.content, False
        report = replace(report, blob=source.blob, pending_etag="", pending_salt="")
        if fetched.held_back:
            return self._held_back(here, before, replace(report, pending_salt=before.pending_salt), fetched)
        if fetched.content is not None and (settings is None or fetched.content != here.content):
            content = fetched.content
            new = self._checked(content, source)
            salt = fingerprint(new)
            # A machine without settings has nothing else to go on with; equal ones are no change.
            changed = settings is not None and salt != fingerprint(settings)
            if changed and (reason := self._reason(metadata, source, salt)):
                report = replace(report, pending_salt=salt)
                return self._held_back(here, before, report, _Fetched(None, source, fetched.etag, reason))
            place.replace(self.path, content)
            settings, written = new, True
        assert settings is not None
        took = take_over(settings, (here.settings or settings).admin.bind, written, before)
        report = replace(
            report, up=not took.error, error=took.error, hash=fingerprint(settings), etag=fetched.etag,
            content=_digest(content), reloaded=took.reloaded, reload_error=took.reload_error,
        )  # fmt: skip
        text = f"{self.path}: {'written' if written else 'unchanged'}, settings {report.hash}; {took.text}"
        return Outcome(report, settings, text, (took.error,) if took.error else ())

    def _held_back(self, here: Here, before: Report, report: Report, fetched: _Fetched) -> Outcome:
        """New settings are there and valid, and it is not this machine's turn; it goes on with those that it has."""
        assert here.settings is not None
        took = take_over(here.settings, here.settings.admin.bind, False, before)
        report = replace(
            report, up=not took.error, error=took.error, held_back=fetched.held_back, pending_etag=fetched.etag,
            reloaded=took.reloaded, reload_error=took.reload_error,
        )  # fmt: skip
        text = f"{self.path}: unchanged, settings {report.hash}; new ones are held back: {fetched.held_back}"
        return Outcome(report, here.settings, text, (took.error,) if took.error else ())

    def _published(self, metadata: Metadata, here: Here, before: Report) -> _Fetched:
        """Raises FetchFailed and Malformed."""
        document = split(metadata.user_data())
        source = document.source
        if not source.blob:
            return _Fetched(document.settings, source)
        token, known = metadata.token(source.client_id), ""
        if before.blob == source.blob and here.settings is not None:
            # An edited file is replaced: the ETag is that of what was written.
            known = before.pending_etag or (before.etag if before.content == _digest(here.content) else "")
        found = blob.read(source.blob, token, known)
        if found.content is None and before.pending_etag:
            if reason := self._reason(metadata, source, before.pending_salt):
                return _Fetched(None, source, known, reason)
            found = blob.read(source.blob, token, "")  # it is this machine's turn now
        return _Fetched(found.content, source, found.etag)

    def _reason(self, metadata: Metadata, source: Source, salt: str) -> str:
        """Why this machine does not take the settings yet; empty if it does. Raises FetchFailed."""
        if not is_partial(source):
            return ""
        machine = metadata.machine()
        return held_back(source, machine.id, machine.tags, salt)

    def _checked(self, content: bytes, source: Source) -> Settings:
        """The published settings, under the checks of `relay check`. Raises FetchFailed."""
        label = blob.short_name(source.blob) if source.blob else "user data"
        try:
            settings = load(
                Path(label), self._environ, read=lambda _path: content, read_included=self._included_beside_the_file
            )
        except SettingsError as error:
            raise FetchFailed(*error.problems, wrong=True) from None
        url = self.text("azure", "metadata_url")
        if settings.azure.metadata_url != url:
            raise FetchFailed(
                f"azure.metadata_url: {settings.azure.metadata_url} in these settings, and they come from {url}: this "
                "machine would get no others any more; set RELAY_AZURE__METADATA_URL in /etc/default/relay instead",
                wrong=True,
            )
        return settings

    def _write_report(self, report: Report) -> None:
        if not self.state:
            return
        try:
            Path(self.state).parent.mkdir(parents=True, exist_ok=True)
            place.replace(Path(self.state), report.to_json())
        except (OSError, FetchFailed) as error:
            print(f"relay: azure.settings_state: {error}", file=sys.stderr)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
