"""What holds for one listener: the instance's tables, with the keys that the listener gives in their place.

Also the rules that follow: an upstream, host:port, has one health check, whichever listeners lead to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeVar

from relay.address import format_hostport, literal, parse_hostport
from relay.settings.listeners import Listener
from relay.settings.tables import AccessSettings, HealthCheckSettings, TimeoutSettings
from relay.settings.values import Section

Table = TypeVar("Table", bound=Section)
SEND_PROXY = {"off": 0, "v1": 1, "v2": 2}


class UpstreamCheck(NamedTuple):
    """The health check of one upstream."""

    settings: HealthCheckSettings
    send_proxy: int  # version of the PROXY header before a TLS handshake; 0: none


def access(instance: AccessSettings, item: Listener) -> AccessSettings:
    """Which clients may connect to a listener; what the instance denies is denied everywhere."""
    own = _over(instance, item.access)
    return own if own is instance else own.model_copy(update={"deny": (*instance.deny, *(item.access.deny or ()))})


def timeouts(instance: TimeoutSettings, item: Listener) -> TimeoutSettings:
    """The timeouts of the connections of a listener and its routes."""
    return _over(instance, item.timeouts)


def upstream_checks(instance: HealthCheckSettings, listeners: Sequence[Listener]) -> dict[str, UpstreamCheck]:
    """The health check of each upstream, by host:port. Valid settings have one only (`check_problems`)."""
    return {upstream: check for item in listeners for upstream, check in _checks(instance, item)}


def check_problems(instance: HealthCheckSettings, listeners: Sequence[Listener]) -> Iterator[str]:
    """A line for listeners that check one upstream differently, and for each upstream without a name to verify."""
    first: dict[str, tuple[Listener, UpstreamCheck]] = {}
    told: set[tuple[str, str]] = set()
    for item in listeners:
        for upstream, check in _checks(instance, item):
            other, before = first.setdefault(upstream, (item, check))
            if check != before and (other.name, item.name) not in told:
                told.add((other.name, item.name))
                yield _difference(upstream, other, before, item, check)
            elif other is item and check.settings.tls and check == before:
                host, port = parse_hostport(upstream, allow_name=True)
                if literal(host, port) is not None and (upstream, "") not in told:
                    told.add((upstream, ""))
                    yield (
                        f"{_where(item)}.tls: the upstream {upstream} of {item.name} is an address, and a certificate "
                        "is verified for a name: write the name, or set listeners.health_check.tls = false there"
                    )


def _over(table: Table, own: Section) -> Table:
    """`table` with the values that `own` has; those that are None are inherited."""
    given = {name: value for name, value in own if value is not None}
    return table.model_copy(update=given) if given else table


def _checks(instance: HealthCheckSettings, item: Listener) -> Iterator[tuple[str, UpstreamCheck]]:
    """Each upstream of a listener and its routes, with the check that the listener gives it."""
    of = _over(instance, item.health_check)
    check = UpstreamCheck(of, SEND_PROXY[item.send_proxy_protocol] if of.tls else 0)
    for text in item.destinations:
        yield format_hostport(*parse_hostport(text, allow_name=True)), check


def _where(item: Listener) -> str:
    """The name of a listener's health check, or of the instance's if the listener gives nothing of its own."""
    own = any(value is not None for _, value in item.health_check)
    return f"listeners.{item.name}.health_check" if own else "health_check"


def _difference(upstream: str, one: Listener, before: UpstreamCheck, two: Listener, check: UpstreamCheck) -> str:
    if check.settings == before.settings:
        return (
            f"listeners.{two.name}.send_proxy_protocol: {two.send_proxy_protocol}, but listeners.{one.name} has "
            f"{one.send_proxy_protocol} and the same upstream, {upstream}: its check by TLS sends the header as well, "
            "and an upstream has one check for all listeners"
        )
    names = [name for name, value in check.settings if value != getattr(before.settings, name)]
    shown = [", ".join(f"{name} {str(getattr(of.settings, name)).lower()}" for name in names) for of in (check, before)]
    return (
        f"listeners.{two.name}.health_check: {shown[0]}, but listeners.{one.name} has {shown[1]} and the same "
        f"upstream, {upstream}: an upstream has one health check, whichever listeners lead to it"
    )
