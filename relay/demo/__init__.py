"""`relay demo`: a stand-in hub, the relay and simulated devices on loopback, to show relay at its main job.

Everything but the hub is real: TLS end to end from each device to the hub, MQTT and HTTPS inside it, and `relay run` in
between as separate processes. No other part of relay imports this package; it needs
the extra `relay-passthrough[demo]`.
"""

from __future__ import annotations
