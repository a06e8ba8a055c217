"""The customers' metrics, written as text in parts, since thousands of customers must not hold the supervisor's loop.

prometheus_client takes about ten microseconds for a sample and renders all of them in one go. The few forms that these
families have are written here instead, the same in Prometheus' text format 0.0.4 and in OpenMetrics but for the names
in the lines before the samples. A customer's name needs no escaping.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from relay.supervisor.admin.customer_status import appeared, by_reason
from relay.supervisor.customers import CustomerCounts
from relay.supervisor.instance import Instance

EOF = b"# EOF\n"  # ends OpenMetrics, and only that

FAMILIES = (
    ("relay_customer_connections_active", "gauge", "Connections of the customer that have not ended."),
    ("relay_customer_connections_limit", "gauge", "Connections of the customer that are admitted at most."),
    ("relay_customer_connections_accepted", "counter", "Connections of the customer accepted."),
    ("relay_customer_connections_refused", "counter", "Connections of the customer refused, by reason."),
    ("relay_customer_bytes", "counter", "Bytes received: up from the customer's clients, down from upstreams."),
)
ACTIVE, LIMIT, ACCEPTED, REFUSED, BYTES = range(len(FAMILIES))


async def with_customers(body: bytes, instance: Instance) -> bytes:
    """A rendered scrape with the families of the customers who had a connection; the loop gets turns meanwhile."""
    openmetrics = body.endswith(EOF)
    parts: list[list[str]] = [list(_head(*family, openmetrics=openmetrics)) for family in FAMILIES]
    async for part in appeared(instance):
        for name, limit, counts in part:
            _add(parts, name, counts, limit)
    text = "".join(line for lines in parts for line in lines).encode()
    return body.removesuffix(EOF) + text + EOF if openmetrics else body + text


def _head(name: str, kind: str, about: str, *, openmetrics: bool) -> Iterator[str]:
    """A counter's samples end in _total; in the lines before them only OpenMetrics leaves that out."""
    if kind == "counter" and not openmetrics:
        name += "_total"
    yield f"# HELP {name} {about}\n"
    yield f"# TYPE {name} {kind}\n"


def _add(parts: Sequence[list[str]], name: str, counts: CustomerCounts, limit: int) -> None:
    """Add the samples of one customer: a limit or a reason only if it is above 0."""
    label = f'customer="{name}"'
    parts[ACTIVE].append(f"relay_customer_connections_active{{{label}}} {counts.active}\n")
    if limit:
        parts[LIMIT].append(f"relay_customer_connections_limit{{{label}}} {limit}\n")
    parts[ACCEPTED].append(f"relay_customer_connections_accepted_total{{{label}}} {counts.accepted}\n")
    for reason, count in by_reason(counts):
        parts[REFUSED].append(f'relay_customer_connections_refused_total{{{label},reason="{reason}"}} {count}\n')
    parts[BYTES].append(f'relay_customer_bytes_total{{{label},direction="up"}} {counts.bytes_up}\n')
    parts[BYTES].append(f'relay_customer_bytes_total{{{label},direction="down"}} {counts.bytes_down}\n')
