"""Sizes and durations as text for people."""

from __future__ import annotations


def size(count: int) -> str:
    """A number of bytes with a decimal unit (kB = 1000 bytes)."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < (1000 if unit == "B" else 999.95):  # from 999.95 kB on, rounding would show 1000.0
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def duration(seconds: float) -> str:
    """A number of seconds as its two largest units, rounded down."""
    whole = int(seconds)
    days, whole = divmod(whole, 86400)
    hours, whole = divmod(whole, 3600)
    minutes, whole = divmod(whole, 60)
    parts = [f"{days}d" if days else "", f"{hours}h" if hours else "", f"{minutes}m" if minutes else "", f"{whole}s"]
    return " ".join([part for part in parts if part][:2])
