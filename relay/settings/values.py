"""The types of the settings' values, with a validator and its error messages for each.

A validator raises ValueError; the message is the rest of a sentence that begins with the value.
"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict

from relay.address import (
    format_hostport,
    is_complete,
    parse_address,
    parse_host,
    parse_hostport,
    parse_network,
    parse_server_name,
)
from relay.core.destinations import why_never

LEAST_HELD = 1 << 20  # least value of `limits.held_bytes`, in bytes
_NAME = re.compile(r"[a-z0-9_-]{1,32}")
_ROUTE_NAME = re.compile(r"[a-z0-9._-]{1,64}")


def _bind(text: str) -> str:
    return format_hostport(*parse_hostport(text, allow_name=False))


def _bind_or_off(text: str) -> str:
    return _bind(text) if text else ""


def _upstream(text: str) -> str:
    host, port = parse_hostport(text, allow_name=True)
    if port == 0:
        raise ValueError("has port 0, which cannot be dialled")
    return format_hostport(_dialled(host, text), port)


def _dialled(host: str, text: str) -> str:
    """The host as settings keep it, a dot at its end if it is a complete name. Raises ValueError if it is never one."""
    try:
        why = why_never(host)
    except ValueError:
        return f"{host}." if is_complete(text) else host
    if why:
        raise ValueError(f"is {why}: never an upstream")
    return host


def _shorthand_upstream(text: str) -> str:
    if text.count(":") == 1 or "]:" in text:
        raise ValueError("has a port; upstream keeps the ports 443, 8883 and 5671: use [[listeners]] to choose others")
    return _dialled(parse_host(text, allow_name=True), text)


def _nameserver(text: str) -> str:
    host, port = parse_address(text, default_port=53)
    if port == 0:
        raise ValueError("has port 0, which cannot be asked")
    return format_hostport(host, port)


def _per_second(value: float) -> float:
    # A token bucket is stored as a time of 64 bits in nanoseconds: ten million tokens of a thousand seconds each fit.
    if 0 < value < 0.001:
        raise ValueError("is less than 0.001 (one in 1000 s); set at least that, or 0")
    return value


def _held_bytes(value: int) -> int:
    # Below this an engine would stay in memory-pressure mode and poll before every receive (see `ring.pump`).
    if 0 < value < LEAST_HELD:
        raise ValueError(f"is less than {LEAST_HELD} (1 MiB); set at least that, or 0")
    return value


def _url(text: str) -> str:
    if re.fullmatch(r"https?://[^/?#\s@]+/?", text) is None:
        raise ValueError("is not a URL like http://169.254.169.254, without a path")
    return text.rstrip("/")


def _host_name(text: str) -> str:
    return parse_host(text, allow_name=True).removesuffix(".")


def _source_address(text: str) -> str:
    return parse_host(text, allow_name=False)


def _listener_name(text: str) -> str:
    if _NAME.fullmatch(text) is None:
        raise ValueError("is not 1 to 32 of a-z, 0-9, - and _")
    return text


def _route_name(text: str) -> str:
    if _ROUTE_NAME.fullmatch(text) is None:
        raise ValueError("is not 1 to 64 of a-z, 0-9, -, _ and .")
    return text


# The upper bounds are far above sensible values and below those that break something: kernel options have 32 bits, and
# a duration above a year is milliseconds by mistake, or was meant as "never", which is 0.
Count = Annotated[int, Field(ge=0, le=10_000_000)]
Duration = Annotated[float, Field(ge=0, le=31_536_000, allow_inf_nan=False)]
PerSecond = Annotated[float, Field(ge=0, le=10_000_000, allow_inf_nan=False), AfterValidator(_per_second)]
Part = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
InARow = Annotated[int, Field(ge=1, le=1000)]
HeldBytes = Annotated[int, Field(ge=0, le=1 << 40), AfterValidator(_held_bytes)]
Bind = Annotated[str, AfterValidator(_bind)]
BindOrOff = Annotated[str, AfterValidator(_bind_or_off)]
Upstream = Annotated[str, AfterValidator(_upstream)]
ShorthandUpstream = Annotated[str, AfterValidator(_shorthand_upstream)]
ServerName = Annotated[str, AfterValidator(parse_server_name)]
Network = Annotated[str, AfterValidator(parse_network)]
Nameserver = Annotated[str, AfterValidator(_nameserver)]
HostName = Annotated[str, AfterValidator(_host_name)]
SourceAddress = Annotated[str, AfterValidator(_source_address)]
Url = Annotated[str, AfterValidator(_url)]
ListenerName = Annotated[str, AfterValidator(_listener_name)]
RouteName = Annotated[str, AfterValidator(_route_name)]
# In strict mode pydantic takes no list for a tuple, and TOML and JSON have only lists. The items stay strict.
Listed = Strict(False)


class Section(BaseModel):
    """Base of every table of settings: no unknown names, no type conversions, no changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
