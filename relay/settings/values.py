"""The kinds of values that settings have: what a value of each may be, and what is said of one that may not.

A validator raises ValueError with the rest of the sentence that begins with the value.
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

LEAST_HELD = 1 << 20  # bytes of `limits.held_bytes`
_NAME = re.compile(r"[a-z0-9_-]{1,32}")


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
    """The host as settings keep it: a dot at the end of a name says that it is complete."""
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
    # A bucket is kept as a time of 64 bits in nanoseconds: ten million tokens, a thousand seconds each, still fit.
    if 0 < value < 0.001:
        raise ValueError("is less than one in a thousand seconds, and not 0")
    return value


def _held_bytes(value: int) -> int:
    # With less an engine would have to look at every byte before it takes it, for ever (see `ring.pump`).
    if 0 < value < LEAST_HELD:
        raise ValueError(f"is less than {LEAST_HELD} (1 MiB), and not 0")
    return value


def _url(text: str) -> str:
    if re.fullmatch(r"https?://[^/?#\s@]+/?", text) is None:
        raise ValueError("is not like http://169.254.169.254")
    return text.rstrip("/")


def _host_name(text: str) -> str:
    return parse_host(text, allow_name=True).removesuffix(".")


def _source_address(text: str) -> str:
    return parse_host(text, allow_name=False)


def _listener_name(text: str) -> str:
    if _NAME.fullmatch(text) is None:
        raise ValueError("is not 1 to 32 of a-z, 0-9, - and _")
    return text


# Bounds are far above what makes sense and below what breaks: kernel options take 32 bits, and a duration of more than
# a year is milliseconds by mistake, or "never", which is 0.
Count = Annotated[int, Field(ge=0, le=10_000_000)]
Duration = Annotated[float, Field(ge=0, le=31_536_000, allow_inf_nan=False)]
PerSecond = Annotated[float, Field(ge=0, le=10_000_000, allow_inf_nan=False), AfterValidator(_per_second)]
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
# Strict pydantic takes no list for a tuple, and TOML and JSON have nothing but lists. The items stay strict.
Listed = Strict(False)


class Section(BaseModel):
    """A table of settings: no unknown names, no conversions, no changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
