"""Draws the timeline: a panel for each event, connections on both relays above, closes and acknowledgements below."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

from bench.timeline_figures import Happening, Records, levels, rates

WIDTH, HEIGHT = 1120, 906
PANEL_WIDTH, PANEL_HEIGHT = 528, 380
LEFT, RIGHT = 62, 14  # inside a panel, beside the charts
BEFORE = 3  # seconds shown before the event
RELAY, SIBLING, CLOSES, ACKED = "#4f46e5", "#d97706", "#be123c", "#0f766e"
NAMES = ("relay", "sibling")
COLOURS = (RELAY, SIBLING)
STYLE = (
    ".h{font-weight:600}.s{fill:#475569;font-size:12.5px}.t{fill:#64748b;font-size:11px}"
    ".l{fill:none;stroke-width:2;stroke-linejoin:round}.g{stroke:#e2e8f0}.f{fill:#fff;stroke:#cbd5e1}"
)


class Chart:
    """One strip of a panel: seconds across, a value up."""

    def __init__(self, box: tuple[float, float, float, float], seconds: tuple[float, float], most: float) -> None:
        self._x, self._y, self._width, self._height = box
        self._first, self._last = seconds
        self._most = most

    def x(self, second: float) -> float:
        return self._x + (second - self._first) / (self._last - self._first) * self._width

    def y(self, value: float) -> float:
        return self._y + self._height * (1 - value / self._most)

    def frame(self, label: str, colour: str, marks: Sequence[float]) -> list[str]:
        """Grid lines with their values, and the label."""
        parts = []
        for mark in marks:
            y = self.y(mark)
            parts.append(f'<path d="M{self._x:.1f} {y:.1f}h{self._width:.1f}" class="g"/>')
            parts.append(f'<text x="{self._x - 6:.1f}" y="{y + 4:.1f}" class="t" text-anchor="end">{mark:,.0f}</text>')
        if label:
            parts.append(
                f'<text x="{self._x:.1f}" y="{self._y - 6:.1f}" class="t" style="fill:{colour}">{escape(label)}</text>'
            )
        return parts

    def span(self, first: float, last: float) -> str:
        """The shaded time of the event."""
        x = self.x(first)
        width = max(self.x(last) - x, 1.5)
        return f'<rect x="{x:.1f}" y="{self._y:.1f}" width="{width:.1f}" height="{self._height:.1f}" fill="#f1f5f9"/>'

    def line(self, times: Sequence[float], values: Sequence[float], colour: str) -> str:
        points = "L".join(f"{self.x(time):.1f} {self.y(value):.1f}" for time, value in zip(times, values, strict=True))
        return f'<path d="M{points}" class="l" stroke="{colour}"/>'

    def bars(self, first: int, values: Sequence[float], colour: str) -> str:
        """One bar per second."""
        wide = self.x(1) - self.x(0)
        shape = "".join(
            f"M{self.x(first + number) + wide * 0.1:.1f} {self.y(0):.1f}"
            f"V{self.y(value):.1f}h{wide * 0.8:.1f}V{self.y(0):.1f}z"
            for number, value in enumerate(values)
            if value
        )
        return f'<path d="{shape}" fill="{colour}"/>' if shape else ""

    def seconds(self, every: int) -> list[str]:
        """The time axis."""
        y = self._y + self._height
        parts = [f'<path d="M{self._x:.1f} {y:.1f}h{self._width:.1f}" stroke="#94a3b8"/>']
        for second in range(0, math.floor(self._last) + 1, every):
            text = f"{second} s" if second else "0"
            anchor = "middle" if second < self._last else "end"
            parts.append(
                f'<text x="{self.x(second):.1f}" y="{y + 15:.1f}" class="t" text-anchor="{anchor}">{text}</text>'
            )
        return parts


def draw(happenings: Sequence[Happening], rows: Sequence[dict[str, Any]], records: Records, connections: int) -> str:
    """The whole picture, as SVG."""
    title = f"{connections:,} TLS connections, and what happens to their relay"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="ui-sans-serif, system-ui, sans-serif" font-size="14">',
        f"<title>{escape(title)}</title>",
        f"<desc>{escape('; '.join(_summary(row) for row in rows))}</desc>",
        f"<style>{STYLE}</style>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#f8fafc"/>',
        f'<text x="24" y="34" font-size="18" class="h">{escape(title)}</text>',
        '<text x="24" y="58" class="s">A device whose connection ends calls again within a second, the relay or its '
        "sibling, whichever is ready, and sends again what was not acknowledged.</text>",
        '<text x="24" y="76" class="s">Lost: written before the end was seen, and not received by the hub through that '
        f"connection; {_missing(rows)}. Grey: the event.</text>",
    ]
    for number, (happening, row) in enumerate(zip(happenings, rows, strict=True)):
        x = 24 + number % 2 * (PANEL_WIDTH + 16)
        y = 94 + number // 2 * (PANEL_HEIGHT + 16)
        parts.append(f'<g transform="translate({x} {y})">')
        parts += _panel(happening, row, records, connections)
        parts.append("</g>")
    return "\n".join([*parts, "</svg>", ""])


def _panel(happening: Happening, row: dict[str, Any], records: Records, connections: int) -> list[str]:
    seconds = (-BEFORE, _last(happening))
    width = PANEL_WIDTH - LEFT - RIGHT
    times = [-BEFORE + step / 5 for step in range((seconds[1] + BEFORE) * 5 + 1)]
    open_chart = Chart((LEFT, 96, width, 120), seconds, _round_up(connections * 1.04))
    closes = rates(happening, (when for when, where, _ in records.closed if where == happening.where), *seconds)
    close_chart = Chart((LEFT, 242, width, 44), seconds, max(*closes, 1) * 1.05)
    acked = rates(happening, records.acked, *seconds)
    acked_chart = Chart((LEFT, 312, width, 38), seconds, max(*acked, 1) * 1.05)
    lost = row["lost"]
    parts = [
        f'<rect width="{PANEL_WIDTH}" height="{PANEL_HEIGHT}" rx="10" class="f"/>',
        f'<text x="16" y="26" class="h">{escape(happening.title)}</text>',
        f'<text x="{PANEL_WIDTH - RIGHT}" y="26" class="h" text-anchor="end" fill="{CLOSES if lost else ACKED}">'
        f"lost: {lost:,} of {row['messages']:,}</text>",
        f'<text x="16" y="46" class="s">{escape(_summary(row))}</text>',
        f'<text x="16" y="64" class="s">{escape(happening.said)} · newcomers served: '
        f"{row['newcomers served']:,}</text>",
    ]
    over = happening.until - happening.began
    parts += [chart.span(0, over) for chart in (open_chart, close_chart, acked_chart)]
    parts += open_chart.frame("", "", [0, connections / 2, connections])
    parts += close_chart.frame("closes per second", CLOSES, [0, max(closes)] if any(closes) else [0])
    parts += acked_chart.frame("messages acknowledged per second", ACKED, [0, max(*acked, 1)])
    legend = " and ".join(
        f'<tspan font-weight="600" fill="{colour}">{name}</tspan>' for name, colour in zip(NAMES, COLOURS, strict=True)
    )
    parts.append(f'<text x="{LEFT}" y="90" class="t">connections on {legend}</text>')
    for where in (1 - happening.where, happening.where):
        parts.append(open_chart.line(times, levels(happening, records, where, times), COLOURS[where]))
    parts.append(close_chart.bars(-BEFORE, closes, CLOSES))
    parts.append(acked_chart.bars(-BEFORE, acked, ACKED))
    parts += acked_chart.seconds(5)
    return parts


def _summary(row: dict[str, Any]) -> str:
    failed = sum(row["connects failed"].values())
    parts = [f"{row['closed with FIN']:,} closed"] if row["closed with FIN"] or not row["closed with RST"] else []
    parts += [f"{row['closed with RST']:,} reset"] if row["closed with RST"] else []
    parts += [f"connects refused: {row['connects refused']:,}"]
    parts += [f"failed: {failed:,}"] if failed else []
    parts += [f"sent again: {row['sent again']:,}"]
    return " · ".join(parts)


def _missing(rows: Sequence[dict[str, Any]]) -> str:
    missing = sum(row["missing"] for row in rows)
    return f"{missing:,} never came" if missing else "sent again, nothing is missing"


def _last(happening: Happening) -> int:
    return math.floor(happening.quiet - happening.began)


def _round_up(value: float) -> float:
    step: float = 10 ** max(0, math.floor(math.log10(max(value, 1))) - 1)
    return math.ceil(value / step) * step
