"""`relay drain`, `relay undrain` and `relay reload`: tell a running relay what to do through its admin port."""

from __future__ import annotations

import sys
import time
import urllib.error
import urllib.request

from relay.status_view import Unreachable, admin_url, duration, fetch, unreachable

TIMEOUT = 10.0  # seconds
LOOK = 0.5  # seconds


class Refused(Exception):
    """The relay does not do it; the text says why."""


def post(admin: str, path: str) -> None:
    """Give an order. Raises Unreachable or Refused."""
    url = admin_url(admin, path)
    request = urllib.request.Request(url, method="POST")  # noqa: S310 - the scheme was checked
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT):  # noqa: S310 - the same
            pass
    except urllib.error.HTTPError as error:
        raise Refused(error.read().decode("utf-8", "replace").strip() or f"HTTP status {error.code}") from None
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise unreachable(url, error) from None


def drain(admin: str, *, wait: bool) -> int:
    """Drain; with `wait` until that is over. The exit status."""
    try:
        post(admin, "/drain")
        print("draining")
        return _follow(admin) if wait else 0
    except (Unreachable, Refused) as error:
        print(f"relay: {error}", file=sys.stderr)
        return 1


def undrain(admin: str) -> int:
    """Put it back into service. The exit status."""
    try:
        post(admin, "/undrain")
    except (Unreachable, Refused) as error:
        print(f"relay: not put back: {error}", file=sys.stderr)
        return 1
    print("serving")
    return 0


def reload(admin: str) -> int:
    """Let it read its settings again. The exit status."""
    try:
        post(admin, "/reload")
    except Unreachable as error:
        print(f"relay: {error}", file=sys.stderr)
        return 1
    except Refused as error:
        for line in str(error).splitlines():
            print(f"relay: not reloaded: {line}", file=sys.stderr)
        return 1
    print("reloaded")
    return 0


def _follow(admin: str) -> int:
    """Show how it goes; 1 if somebody puts the relay back into service. A relay that has ended has drained as well."""
    terminal = sys.stdout.isatty()
    shown = ""
    while True:
        try:
            status = fetch(admin)
        except Unreachable:
            print("\nended" if terminal else "ended")
            return 0
        state = status["drain"]
        if state is None:
            print("relay: put back into service meanwhile", file=sys.stderr)
            return 1
        phase, active = state["phase"], status["connections"]["active"]
        line = f"{phase}: {active} connections, {duration(state['seconds_left'])} left"
        if terminal:
            print(f"\r{line:60s}", end="", flush=True)
        elif phase != shown:
            print(line, flush=True)
        shown = phase
        if phase == "drained":
            if terminal:
                print()
            return 0
        time.sleep(LOOK)
