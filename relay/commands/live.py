"""`relay status --live`: asks /livez of a running relay, for health checks of containers and scripts.

It is apart from `status` because that one imports what draws tables: a health check starts an interpreter every few
seconds for as long as the relay runs.
"""

from __future__ import annotations

import sys

from relay.commands.admin_client import Unreachable, request


def run(admin: str) -> int:
    """Print one line: whether the relay at the URL `admin` is alive. Returns 0 if it is, else 1.

    A relay that drains is alive; one of which a worker's event loop does not answer is not.
    """
    try:
        answer = request(admin, "/livez")
        if answer.status not in (200, 503):
            raise answer.unexpected()
    except Unreachable as error:
        print(f"relay: {error}", file=sys.stderr)
        return 1
    if answer.status == 200:
        print(f"alive, relay {answer.version}")
        return 0
    print(f"not alive, relay {answer.version}: {answer.text}")
    return 1
