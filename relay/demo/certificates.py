"""A certificate authority made for one run of the demo, and the hub's certificate from it.

The relay gets neither: it never terminates TLS and has no use for them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import trustme


@dataclass(frozen=True, slots=True)
class Certificates:
    """Paths of PEM files."""

    authority: Path  # what devices trust
    server: Path  # the hub's key and certificate chain


def create(directory: Path, hub: str) -> Certificates:
    """Create an authority and a certificate for the name `hub` as files in `directory`. Raises OSError."""
    authority = trustme.CA(organization_name="relay demo")
    made = Certificates(directory / "authority.pem", directory / "server.pem")
    authority.cert_pem.write_to_path(str(made.authority))
    made.server.touch(mode=0o600)
    authority.issue_cert(hub).private_key_and_cert_chain_pem.write_to_path(str(made.server))
    return made
