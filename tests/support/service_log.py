"""A service log for components under test."""

from __future__ import annotations

from typing import Any


class QuietLog:
    """A `ServiceLog` that keeps nothing; a test's own overrides the levels that it looks at."""

    def bind(self, **_fields: Any) -> QuietLog:
        return self

    def debug(self, event: str, **fields: Any) -> None: ...

    def info(self, event: str, **fields: Any) -> None: ...

    def warning(self, event: str, **fields: Any) -> None: ...

    def error(self, event: str, **fields: Any) -> None: ...

    def exception(self, event: str, **fields: Any) -> None: ...
