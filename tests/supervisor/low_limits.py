"""Prepares a start under descriptor limits of its own; see test_prepare.py.

    python -m tests.supervisor.low_limits SOFT HARD CONFIG

Prints what came of it as JSON: the instance's numbers, or the problems.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

from relay.settings.model import load
from relay.supervisor.instance import StartError
from relay.supervisor.prepare import prepare


def main() -> None:
    soft, hard = int(sys.argv[1]), int(sys.argv[2])
    settings = load(Path(sys.argv[3]), {})
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    try:
        instance = prepare(settings)
    except StartError as error:
        answer: dict[str, object] = {"problems": error.problems}
    else:
        answer = {
            "descriptors": instance.descriptors,
            "limit": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
            "capacity": instance.limits.capacity,
            "instance": instance.limits.instance,
            "sockets": sum(len(instance.worker_sockets(index)) for index in range(instance.workers)),
            "notes": instance.notes,
        }
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main()
