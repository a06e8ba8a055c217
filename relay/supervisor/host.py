"""Resources of this machine: descriptor limit, local ports and addresses; and bind errors in words."""

from __future__ import annotations

import errno
import os
import resource
import socket
from collections.abc import Sequence
from pathlib import Path

IN_USE = "address already in use"
UNLIMITED_DESCRIPTORS = 1 << 20  # where the hard limit is "unlimited"
DEFAULT_SOURCE_PORTS = 60999 - 32768 + 1  # ip-sysctl: ip_local_port_range


def raise_descriptor_limit() -> int:
    """Raise RLIMIT_NOFILE to its hard limit, which needs no privilege; returns the limit in effect."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        hard = max(soft, UNLIMITED_DESCRIPTORS)
    if soft < hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        except (OSError, ValueError):
            return soft
    return hard


def source_ports(proc: Path = Path("/proc/sys/net/ipv4")) -> int:
    """The number of ephemeral ports: the kernel's range less the reserved ones (ip-sysctl, both families)."""
    try:
        first, last = map(int, (proc / "ip_local_port_range").read_text().split())
        reserved = (proc / "ip_local_reserved_ports").read_text().strip()
    except (OSError, ValueError):
        return DEFAULT_SOURCE_PORTS
    ports = last - first + 1
    for part in filter(None, reserved.split(",")):
        low, _, high = part.partition("-")
        ports -= max(0, min(last, int(high or low)) - max(first, int(low)) + 1)
    return max(1, ports)


def has_address(host: str) -> bool:
    """Whether this machine can bind a literal address."""
    return not _bind_problem(host)


def _bind_problem(host: str) -> str:
    """Why a socket cannot be bound to a literal address, at any port; empty if it can."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.bind((host, 0))
    except OSError as error:
        return bind_error(error, 0)
    return ""


def source_problems(addresses: Sequence[str]) -> list[str]:
    """A line for each source address that this machine does not have."""
    problems = ((host, _bind_problem(host)) for host in addresses)
    return [f"dial.source_addresses: {host}: {problem}" for host, problem in problems if problem]


def bind_error(error: OSError, port: int) -> str:
    """Why bind(2) failed, and what to do about it."""
    if error.errno == errno.EADDRINUSE:
        return f"{IN_USE}; stop what listens there (`ss -ltnp`), or choose another port"
    if error.errno == errno.EACCES:
        return f"permission denied; port {port} needs CAP_NET_BIND_SERVICE (or root), ports from 1024 on do not"
    if error.errno == errno.EADDRNOTAVAIL:
        return "this machine has no such address; see `ip address`"
    if error.errno == errno.EMFILE:
        return "no descriptor is left for it; raise LimitNOFILE or `ulimit -n`"
    return os.strerror(error.errno or 0).lower()


def most_in_use(ports: int) -> int:
    """How many of `ports` ephemeral ports to use: all but a fiftieth, which is slow to find and left to others."""
    return max(1, ports - max(1, ports // 50))
