"""A worker's orders come out of their JSON as they went in."""

from __future__ import annotations

from dataclasses import fields

from hypothesis import given, settings
from hypothesis import strategies as st

from relay.control import MAX_MESSAGE
from relay.core.limits import LimitPlan
from relay.engines.contract import TcpOptions, Timeouts
from relay.spec import ListenerSpec, WorkerSpec

NUMBERS = st.integers(0, 1 << 40)
SECONDS = st.floats(0, 1e9)
UPSTREAMS = st.lists(st.tuples(NUMBERS, st.text(), st.integers(1, 65535)), max_size=4).map(tuple)
SPECS = st.builds(
    WorkerSpec,
    listeners=st.lists(st.builds(ListenerSpec, st.text(), UPSTREAMS, NUMBERS), max_size=4).map(tuple),
    upstreams=st.lists(st.text(), max_size=4).map(tuple),
    limits=st.builds(LimitPlan, listeners=st.lists(NUMBERS, max_size=4).map(tuple)),
    nameservers=st.lists(st.tuples(st.text(), NUMBERS), max_size=3).map(tuple),
    connect_timeout=SECONDS,
    timeouts=st.builds(Timeouts, SECONDS, SECONDS),
    tcp=st.builds(TcpOptions, NUMBERS, NUMBERS, NUMBERS, SECONDS),
    held_bytes=NUMBERS,
)


@settings(deadline=None)
@given(SPECS)
def test_round_trip(spec: WorkerSpec) -> None:
    again = WorkerSpec.from_json(spec.to_json())
    assert again == spec
    for field in fields(WorkerSpec):
        assert type(getattr(again, field.name)) is type(getattr(spec, field.name)), field.name
    hash(again)  # tuples all the way down, no list among them


def test_a_large_configuration_fits_into_a_control_message() -> None:
    spec = WorkerSpec(
        index=127,
        engine="stream",
        listeners=tuple(
            ListenerSpec(f"listener-{n}", ((n, "a-rather-long-name-of-a-hub.privatelink.azure-devices.net", 8883),), 2)
            for n in range(120)
        ),
        upstreams=("a-rather-long-name-of-a-hub.privatelink.azure-devices.net:8883",) * 120,
        limits=LimitPlan(128, 1_000_000, 100_000, (100_000,) * 120, 1000, 65536),
        source_key="0" * 32,
        source_prefix_v4=32,
        source_prefix_v6=64,
        connect_timeout=5.0,
        nameservers=(("168.63.129.16", 53),),
        timeouts=Timeouts(3600.0, 300.0),
        tcp=TcpOptions(),
        held_bytes=67_108_864,
        access_log=True,
        log_format="json",
        debug=False,
    )
    assert len(spec.to_json()) < MAX_MESSAGE / 2
