"""A hash of the settings, by which an operator sees whether the machines of a fleet have the same ones."""

from __future__ import annotations

import hashlib
import json

from relay.settings.model import Settings

DIGITS = 12  # 48 bits: two settings of one fleet never meet


def fingerprint(settings: Settings) -> str:
    """DIGITS hexadecimal digits: equal for equal effective settings, whatever file or variable they came from.

    A setting at its default does not count, so that a release which adds a setting leaves the hash as it was.
    """
    values = settings.model_dump(mode="json", exclude_defaults=True)
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:DIGITS]
