"""A worker's orders come out of their JSON as they went in."""

from __future__ import annotations

import os
from dataclasses import fields

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.core.limit_table import LimitPlan
from relay.core.rates import Rate, RatePlan
from relay.engines.contract import TcpOptions, Timeouts
from relay.ipc.worker_spec import NO_BUCKET, ListenerAccess, ListenerSpec, ListenerTimeouts, RouteSpec, WorkerSpec

NUMBERS = st.integers(0, 1 << 40)
SECONDS = st.floats(0, 1e9)
UPSTREAMS = st.lists(st.tuples(NUMBERS, st.text(), st.integers(1, 65535)), max_size=4).map(tuple)
RATE = st.builds(Rate, SECONDS, SECONDS)
NAMES = st.lists(st.text(), max_size=3).map(tuple)
ROUTES = st.builds(RouteSpec, NUMBERS, st.text(), NAMES, UPSTREAMS, UPSTREAMS, st.integers(NO_BUCKET, 9), st.booleans())
SPECS = st.builds(
    WorkerSpec,
    listeners=st.lists(
        st.builds(
            ListenerSpec,
            NUMBERS,
            st.text(),
            UPSTREAMS,
            st.lists(st.tuples(st.text(), st.booleans()), max_size=3).map(tuple),
            st.lists(st.text(), max_size=3).map(tuple),
            st.sampled_from(["off", "accept", "require"]),
            st.sampled_from([0, 1, 2]),
            st.builds(ListenerTimeouts, SECONDS, SECONDS, SECONDS, SECONDS, SECONDS),
            st.lists(ROUTES, max_size=3).map(tuple),
            st.none() | st.builds(ListenerAccess, NAMES, NAMES),
            NAMES,
        ),
        max_size=4,
    ).map(tuple),
    slots=st.tuples(NUMBERS, NUMBERS, NUMBERS),
    upstreams=st.lists(st.text(), max_size=4).map(tuple),
    access_allow=st.lists(st.text(), max_size=4).map(tuple),
    access_deny=st.lists(st.text(), max_size=4).map(tuple),
    limits=st.builds(LimitPlan, listeners=st.lists(NUMBERS, max_size=4).map(tuple)),
    rates=st.builds(RatePlan, RATE, RATE, RATE, st.lists(RATE, max_size=3).map(tuple), NUMBERS, SECONDS),
    source_addresses=st.lists(st.text(), max_size=4).map(tuple),
    source_ports=NUMBERS,
    eject_after=NUMBERS,
    eject_seconds=SECONDS,
    ejections=st.lists(st.tuples(NUMBERS, NUMBERS, SECONDS), max_size=3).map(tuple),
    connect_timeout=SECONDS,
    dial_timeout=SECONDS,
    timeouts=st.builds(Timeouts, SECONDS, SECONDS),
    drain_window=SECONDS,
    tcp=st.builds(TcpOptions, NUMBERS, NUMBERS, NUMBERS, SECONDS),
    held_bytes=NUMBERS,
    customers=NUMBERS,
    only_customers=st.booleans(),
)


@settings(deadline=None)
@given(SPECS)
def test_round_trip(spec: WorkerSpec) -> None:
    again = WorkerSpec.from_json(spec.to_json())
    assert again == spec
    for field in fields(WorkerSpec):
        assert type(getattr(again, field.name)) is type(getattr(spec, field.name)), field.name
    hash(again)  # tuples all the way down, no list among them


@settings(deadline=None, max_examples=20)
@given(SPECS)
def test_round_trip_through_a_file(spec: WorkerSpec) -> None:
    descriptor = spec.to_file()
    assert WorkerSpec.from_file(descriptor) == spec
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
