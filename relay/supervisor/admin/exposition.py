"""In which text format `/metrics` answers: OpenMetrics for those who ask for it, Prometheus' own (0.0.4) for others.

prometheus_client writes the formats and chooses between them, but takes an Accept header at its word: the first range
that it knows, whatever the weights, and a version that is no number is an exception. So it is given what is left of
the header after reading it as RFC 9110 (section 12.5.1) has it.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

# Formats that can be had, by their versions; "" is one that is asked for without a version.
VERSIONS = {"application/openmetrics-text": ("", "1.0.0"), "text/plain": ("", "0.0.4", "1.0.0")}
# How names beyond a-z are to be written; relay has none, so that any other wish makes no difference.
ESCAPINGS = ("allow-utf-8", "underscores")


def expose(registry: CollectorRegistry, accept: str) -> tuple[bytes, str]:
    """All metrics in the format that the Accept header asks for, and its media type."""
    encode, media_type = choose_encoder(wanted(accept))
    return encode(registry), media_type


def wanted(accept: str) -> str:
    """The media range with the most weight of those that can be had, without its weight; "" if there is none."""
    best, most = "", 0.0
    for text in accept.lower().split(","):
        kind, *rest = (part.strip() for part in text.split(";"))
        given = {name.strip(): value.strip().strip('"') for name, _, value in (part.partition("=") for part in rest)}
        try:
            weight = float(given.get("q", "1"))
        except ValueError:
            continue
        version, escaping = given.get("version", ""), given.get("escaping", "")
        if most < weight <= 1 and version in VERSIONS.get(kind, ()):
            best, most = kind, weight
            best += f";version={version}" if version else ""
            best += f";escaping={escaping}" if escaping in ESCAPINGS else ""
    return best
