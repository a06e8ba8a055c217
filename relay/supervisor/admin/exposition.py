"""Content negotiation of `/metrics`: OpenMetrics if the Accept header asks for it, else Prometheus' text format 0.0.4.

prometheus_client chooses between the formats, but takes the first media range that it knows whatever the weights, and
raises an exception for a version that is no number. So the header is parsed here by RFC 9110 (section 12.5.1), and
prometheus_client gets the best range alone.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

# Media types that can be produced, and their versions; "": no version in the range.
VERSIONS = {"application/openmetrics-text": ("", "1.0.0"), "text/plain": ("", "0.0.4", "1.0.0")}
# Escaping schemes for metric names with other characters; relay has none, so any other scheme makes no difference.
ESCAPINGS = ("allow-utf-8", "underscores")


def expose(registry: CollectorRegistry, accept: str) -> tuple[bytes, str]:
    """All metrics in the format that the Accept header asks for, and its media type."""
    encode, media_type = choose_encoder(wanted(accept))
    return encode(registry), media_type


def wanted(accept: str) -> str:
    """The supported media range with the highest weight, without the weight; "" if there is none."""
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
