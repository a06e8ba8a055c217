"""Loads settings in a child process, for a supervisor that has thousands of customers.

Reading and validating them makes some thirty megabytes of small objects. What of those is still in use afterwards lies
scattered over all of the memory, so that hardly any of it can be returned, and the process grows with its reloads. The
child ends with all of it. This process makes nothing but the settings themselves.
"""

from __future__ import annotations

import marshal
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from relay.settings import model
from relay.settings.customers import Packed
from relay.settings.file_reader import OWN_DESCRIPTORS, read_apart, read_included_apart
from relay.settings.model import Settings, SettingsError

MANY = (
    500  # customers from which on it is worth the child, which takes a quarter of a second of processor time to start
)
SECONDS = 9.3  # for all of it; the deadlines of the files' readers (`file_reader`) are earlier


def load(config: Path | None, environ: Mapping[str, str], before: Settings) -> Settings:
    """The settings as `model.load` returns them. Raises SettingsError.

    Where no child can be started, or it does not get to the end (no memory), this process loads them itself.
    """
    if str(config).startswith(OWN_DESCRIPTORS) or (answer := _ask_child(config, environ)) is None:
        return model.load(config, environ, before=before, read=read_apart, read_included=read_included_apart)
    if "problems" in answer:
        raise SettingsError(answer["problems"], absent=answer["absent"])
    customers = Packed(*answer["customers"]) if answer["customers"] else ()
    settings = model.restored(answer["values"], customers, answer["deprecated"], answer["silent"])
    model.check_change(before, settings)
    return settings


def _ask_child(config: Path | None, environ: Mapping[str, str]) -> dict[str, Any] | None:
    """What the child answers; None if it does not. Raises SettingsError if it takes too long."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "relay.settings.apart", *([str(config)] if config is not None else [])],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=dict(environ),
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise SettingsError([f"settings: not read within {SECONDS:g} s"], absent=True) from None
    except OSError:
        return None
    if done.returncode:
        return None
    answer: dict[str, Any] = marshal.loads(done.stdout)  # noqa: S302 - made by `main` of the same version
    return answer


def main(arguments: list[str]) -> None:
    """Write the settings of the file in `arguments` and of the environment, or the mistakes, to standard output."""
    config = Path(arguments[0]) if arguments else None
    try:
        settings = model.load(config, os.environ, read=read_apart, read_included=read_included_apart)
    except SettingsError as error:
        answer: dict[str, Any] = {"problems": error.problems, "absent": error.absent}
    else:
        packed = Packed.of(settings.customers)
        answer = {
            "values": settings.model_dump(mode="json", exclude={"customers"}),
            "deprecated": settings.deprecated,
            "silent": settings.silent,
            "customers": (packed.content, packed.ends, len(packed)) if packed else None,
        }
    sys.stdout.buffer.write(marshal.dumps(answer))


if __name__ == "__main__":
    main(sys.argv[1:])
