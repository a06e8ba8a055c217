"""Decides whether this machine is in the part of a fleet that takes new settings first.

Every machine has a place from 0 to 100 for each change of the settings: a hash of its id and a salt. It takes the
change if its place is below the percentage, so a greater percentage adds machines and removes none. The salt is a hash
of the new settings unless one is given: so it is not always the same machines that are first.
"""

from __future__ import annotations

import hashlib

from relay.core.user_data import Source


def place(machine: str, salt: str) -> float:
    """The machine's place in the order of a rollout: evenly spread, at least 0 and below 100."""
    digest = hashlib.sha256(f"{salt}\0{machine}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / (1 << 48) * 100  # 48 bits are exact in a float


def is_partial(source: Source) -> bool:
    """Whether only a part of the fleet takes new settings, so that this machine's id and tags have to be known."""
    return _percentage(source) < 100


def held_back(source: Source, machine: str, tags: dict[str, str], salt: str) -> str:
    """Why this machine does not take the settings yet; empty if it does.

    `machine` is its id in any spelling, `tags` are its tags, `salt` stands for the settings.
    """
    name, _, value = source.canary_tag.partition(":")
    if source.canary_tag and tags.get(name) == value:
        return ""
    here, percentage = place(machine.lower(), source.salt or salt), _percentage(source)
    if here < percentage:
        return ""
    reason = f"this machine is at {here:.1f} of 100, and settings_source.percentage is {percentage:g}"
    return f"{reason}; it has no tag {source.canary_tag}" if source.canary_tag else reason


def _percentage(source: Source) -> float:
    """The percentage in effect: a canary tag alone means that no other machine takes the settings."""
    if source.percentage is not None:
        return source.percentage
    return 0 if source.canary_tag else 100
