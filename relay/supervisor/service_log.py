"""The service log: the supervisor's own events, through structlog, one line per event on standard output.

The access log shares the output and the format, but the workers write it (`worker.connection.access_log`).
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol

import structlog

from relay.log_writer import CRITICAL, DEBUG, ERROR, INFO, WARNING, LogWriter, local_timestamp, timestamp

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


class ServiceLog(Protocol):
    """What the supervisor's code needs of structlog's logger: an event, and its fields by keyword."""

    def bind(self, **fields: Any) -> ServiceLog:
        """A logger that adds these fields to each event."""

    def debug(self, event: str, **fields: Any) -> Any: ...

    def info(self, event: str, **fields: Any) -> Any: ...

    def warning(self, event: str, **fields: Any) -> Any: ...

    def error(self, event: str, **fields: Any) -> Any: ...

    def exception(self, event: str, **fields: Any) -> Any:
        """Like `error`, with the traceback of the exception that is being handled."""


class _Threshold:
    """Drops events below the log level, which a reload may change."""

    def __init__(self) -> None:
        self.level = logging.INFO

    def __call__(self, _logger: object, method: str, event: Any) -> Any:
        if LEVELS.get(method, logging.ERROR) < self.level:
            raise structlog.DropEvent
        return event


_threshold = _Threshold()


def set_level(level: str) -> None:
    """Set the log level: debug, info, warning or error."""
    _threshold.level = LEVELS[level]


class _Output:
    """A logger in structlog's sense: writes rendered lines, with a method for each level."""

    def __init__(self, writer: LogWriter) -> None:
        self._writer = writer

    def debug(self, message: str) -> None:
        self._writer.write(message + "\n", DEBUG)

    def info(self, message: str) -> None:
        self._writer.write(message + "\n", INFO)

    def warning(self, message: str) -> None:
        self._writer.write(message + "\n", WARNING)

    def error(self, message: str) -> None:
        self._writer.write(message + "\n", ERROR)

    def critical(self, message: str) -> None:
        self._writer.write(message + "\n", CRITICAL)

    msg = log = info
    warn = warning
    exception = error
    fatal = critical


def _ordered(stamp: Callable[[float], str]) -> Callable[[object, str, dict[str, Any]], dict[str, Any]]:
    """A processor that puts time, level and event first, as in the access log, so that lines are easy to read."""

    def in_order(_logger: object, _method: str, event: dict[str, Any]) -> dict[str, Any]:
        return {"time": stamp(time.time()), "level": event.pop("level"), "event": event.pop("event"), **event}

    return in_order


class _Bridge(logging.Handler):
    """Passes records of libraries (aiohttp, asyncio) to the service log."""

    def __init__(self, log: structlog.typing.FilteringBoundLogger) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._log.log(record.levelno, record.getMessage(), logger=record.name, exc_info=record.exc_info)
        except Exception:  # noqa: BLE001 -- logging's rule for handlers: the code that logs must not fail
            self.handleError(record)


def configure(writer: LogWriter, log_format: str, level: str) -> ServiceLog:
    """Set up the log of this process and return it; `log_format` is json or console."""
    set_level(level)
    processors: list[Any] = [_threshold, structlog.processors.add_log_level]
    if log_format == "json":
        processors += [
            _ordered(timestamp),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ]
    else:
        processors += [
            _ordered(local_timestamp),
            structlog.dev.ConsoleRenderer(
                colors=sys.stdout.isatty(), timestamp_key="time", exception_formatter=structlog.dev.plain_traceback
            ),
        ]
    log: structlog.typing.FilteringBoundLogger = structlog.wrap_logger(
        _Output(writer),
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
        context_class=dict,
    )
    logging.getLogger().addHandler(_Bridge(log))
    return log
