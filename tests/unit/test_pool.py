"""How long a worker that ended early is waited with before the next start."""

from __future__ import annotations

from relay.worker_process import BACKOFF_LIMIT, backoff


def test_the_first_restart_is_at_once_and_the_pauses_double() -> None:
    assert [backoff(failures) for failures in range(10)] == [0, 0, 0.5, 1, 2, 4, 8, 16, 30, 30]


def test_a_crash_loop_of_days_is_still_answered() -> None:
    pauses = [backoff(failures) for failures in range(10, 100_000)]
    assert set(pauses) == {BACKOFF_LIMIT}
