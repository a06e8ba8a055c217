"""Documents of Azure Scheduled Events for tests: as Microsoft's pages have them, nearly so, and any JSON at all."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from relay.core.scheduled_events import COMPLETED, SCHEDULED, STARTED, Document, parse

OWN = "relays_12"
RECEIVED = 1474309757.0  # Mon, 19 Sep 2016 18:29:17 GMT
IN_30 = "Mon, 19 Sep 2016 18:29:47 GMT"  # the source's example
IN_38 = "Mon, 19 Sep 2016 18:29:55 GMT"
IN_8 = "Mon, 19 Sep 2016 18:29:25 GMT"
# A busy machine is not a slow test.
PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
GONE = Document([], [])


def event(kind: str = "Preempt", resources: object = (OWN,), **fields: object) -> dict[str, object]:
    """As the source has them."""
    return {
        "EventId": "602d9444-d2cd-49c7-8624-8643e7171297",
        "EventStatus": SCHEDULED,
        "EventType": kind,
        "ResourceType": "VirtualMachine",
        "Resources": list(resources) if isinstance(resources, tuple) else resources,
        "NotBefore": IN_30,
        "Description": "Host server is undergoing maintenance.",
        "EventSource": "Platform",
        "DurationInSeconds": -1,
        **fields,
    }


def read(*events: object, own: str = OWN, received: float = RECEIVED) -> Document:
    return parse({"DocumentIncarnation": 2, "Events": list(events)}, own, received)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)
TIMES = st.sampled_from([IN_8, IN_30, IN_38, "", "soon"])
KINDS = st.sampled_from(["Freeze", "Reboot", "Redeploy", "Preempt", "Terminate", "Levitate"])
NEARLY: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {},
    optional={
        "EventId": st.sampled_from(["a", "b"]) | JSON,
        "EventStatus": st.sampled_from([SCHEDULED, STARTED, COMPLETED]) | JSON,
        "EventType": KINDS | JSON,
        "Resources": st.lists(st.sampled_from([OWN, "relays_13"]) | JSON, max_size=3) | JSON,
        "NotBefore": TIMES | st.text() | st.datetimes().map(str) | JSON,
        "Description": JSON,
        "EventSource": JSON,
    },
)
# As far as they go all right: what a watchlist gets to see.
LIKELY: st.SearchStrategy[dict[str, Any]] = st.builds(
    event,
    KINDS,
    st.sampled_from([(OWN,), (OWN, "relays_13")]),
    EventId=st.sampled_from(["a", "b", 7]),
    EventStatus=st.sampled_from([SCHEDULED, SCHEDULED, STARTED, COMPLETED]),
    NotBefore=TIMES,
)
