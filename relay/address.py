"""Host names, literal addresses and `host:port` pairs as people write them: parsing, checking and formatting.

Every configured address is parsed here, so that relay has one spelling of each: lower-case names without the trailing
dot, IPv6 compressed and in brackets when a port follows. A trailing dot marks a complete name (`is_complete`); settings
keep it, while displayed and compared names do not have it. This module resolves nothing, touches no socket, and imports
only the standard library, since workers use it too. Internationalised names are not converted, and IPv6 zone ids
(RFC 4007) are refused, because their meaning differs from machine to machine.
"""

from __future__ import annotations

import re
from ipaddress import AddressValueError, IPv4Address, IPv6Address, ip_address, ip_network

# (host, port) or (host, port, flowinfo, scope), as Python's accept returns them; the host is a literal address.
Address = tuple[str, int] | tuple[str, int, int, int]

MAX_PORT = 65535
MAX_NAME = 253  # characters, without the trailing dot: RFC 1035 section 2.3.4 less the length octets

# RFC 1123 section 2.1, plus the underscore, which names in private zones contain in practice.
_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
_PORT = re.compile(r"[0-9]{1,5}")
_PREFIX = re.compile(r"[0-9]{1,3}")
_BRACKETED = re.compile(r"\[([^\[\]]*)\](?::(.*))?", re.DOTALL)


class AddressError(ValueError):
    """An invalid address. The message is a predicate: it continues a sentence that begins with the quoted text."""


def parse_hostport(text: str, *, allow_name: bool) -> tuple[str, int]:
    """Parse `host:port` or `[IPv6]:port`. Port 0 is accepted; the caller decides whether it is allowed.

    Without `allow_name` the host must be a literal IPv4 or IPv6 address. Raises AddressError.
    """
    host, port = _split(text)
    if port is None:
        raise AddressError("has no port; write host:port, or [address]:port for IPv6")
    return _host(host, text.startswith("["), allow_name), _port(port)


def parse_host(text: str, *, allow_name: bool) -> str:
    """Parse a host without a port: name, IPv4, or IPv6 with or without brackets. Raises AddressError."""
    host, port = _split(text)
    if port is not None:
        raise AddressError("has a port, where a host alone belongs")
    return _host(host, text.startswith("["), allow_name)


def is_complete(text: str) -> bool:
    """Whether the host of `host` or `host:port` ends with a dot, so that no search list applies to it."""
    host, _port = _split(text)
    return host.endswith(".")


def parse_address(text: str, *, default_port: int) -> tuple[str, int]:
    """Parse a literal address with an optional port, else `default_port`. Raises AddressError."""
    host, port = _split(text)
    return _host(host, text.startswith("["), False), default_port if port is None else _port(port)


def parse_server_name(text: str) -> str:
    """Parse a TLS server name, exact or `*.suffix`. Raises AddressError."""
    star = "*." if text.startswith("*.") else ""
    if "*" in text.removeprefix("*."):
        raise AddressError("has a * that is not the whole first label; write *.suffix")
    name = text.removeprefix("*.")
    if not name or ":" in name or "/" in name:
        raise AddressError("is no name; write hub.example, or *.suffix for all names that end so")
    return star + _name(name)


def parse_network(text: str) -> str:
    """Parse a network, `10.0.0.0/8` or `2001:db8::/32`, or a single address. Raises AddressError."""
    host, slash, length = text.partition("/")
    address: IPv4Address | IPv6Address | None
    try:
        address = _ipv6(host) if ":" in host else IPv4Address(host)
    except AddressValueError:
        address = None
    if address is None:
        raise AddressError("is neither a network like 10.0.0.0/8 or 2001:db8::/32 nor an address")
    if not slash:
        return str(address)
    if _PREFIX.fullmatch(length) is None or int(length) > address.max_prefixlen:
        raise AddressError(f"has no prefix length from 0 to {address.max_prefixlen} behind its /")
    network = ip_network((address, int(length)), strict=False)
    if network.network_address != address:
        raise AddressError(f"has bits set behind its prefix; the network is {network}")
    return str(network)


def format_hostport(host: str, port: int) -> str:
    """Format host and port for `parse_hostport`, IPv6 in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _split(text: str) -> tuple[str, str | None]:
    """Split the text into the host, without brackets, and the text of the port, or None."""
    if not text:
        raise AddressError("is empty")
    if "/" in text:
        raise AddressError("has a slash; write a host and a port, not a URL or a network")
    if text.startswith("["):
        match = _BRACKETED.fullmatch(text)
        if match is None:
            raise AddressError("is not [address]:port")
        return match[1], match[2]
    if text.count(":") > 1:
        if _ipv6(text) is None:
            raise AddressError("is not host:port, nor an IPv6 address; with a port, IPv6 goes in brackets: [::1]:443")
        return text, None
    host, colon, port = text.partition(":")
    return host, port if colon else None


def _port(text: str) -> int:
    if _PORT.fullmatch(text) is None or int(text) > MAX_PORT:
        raise AddressError(f"has no valid port, a whole number from 0 to {MAX_PORT}")
    return int(text)


def _host(text: str, bracketed: bool, allow_name: bool) -> str:
    if bracketed or ":" in text:
        address = _ipv6(text)
        if address is None:
            raise AddressError("has no IPv6 address in its brackets")
        # ::ffff:a.b.c.d is IPv4 on the wire. If it stayed IPv6, the same address would have two spellings, and Linux
        # does not bind it to a socket that is IPv6 only.
        return str(address.ipv4_mapped or address)
    try:
        return str(IPv4Address(text))
    except ValueError:
        pass
    if text in ("", "*"):
        raise AddressError("has no host; every address is 0.0.0.0:port for IPv4 and [::]:port for IPv6")
    name = _name(text)
    if not allow_name:
        raise AddressError("is not a literal address; write IPv4 or [IPv6], not a name")
    return name


def _ipv6(text: str) -> IPv6Address | None:
    if "%" in text:
        raise AddressError("has a zone id (%), which is not supported")
    try:
        return IPv6Address(text)
    except ValueError:
        return None


def _name(text: str) -> str:
    if not text.isascii():
        raise AddressError("has characters beyond ASCII; write the name in its xn-- form (IDNA)")
    name = text.lower().removesuffix(".")
    if len(name) > MAX_NAME:
        raise AddressError(f"is a host name of more than {MAX_NAME} characters")
    labels = name.split(".")
    if any(_LABEL.fullmatch(label) is None for label in labels):
        raise AddressError("is not a host name: labels of 1 to 63 letters, digits, - and _, without - at either end")
    # RFC 1123 section 2.1: a name cannot look like an address. 10.0.0.256 is a typing error, not a host name.
    if labels[-1].isdigit():
        raise AddressError("is not an IPv4 address, and a host name cannot end in a number")
    return name


def literal(host: str, port: int) -> Address | None:
    """The socket address of a literal IPv4 or IPv6 address; None for a name."""
    try:
        address = ip_address(host)
    except ValueError:
        return None
    return (host, port) if address.version == 4 else (host, port, 0, 0)
