"""relay: a TCP passthrough relay in front of a private endpoint.

The package holds the supervisor, its workers and everything that they are made of; it never terminates TLS. This
file carries the version and nothing else, so that importing `relay` costs nothing and a worker starts in a blink:
import what you need from the module that has it.
"""

from __future__ import annotations

__version__ = "0.1.0"
