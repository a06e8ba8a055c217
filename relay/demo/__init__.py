"""`relay demo`: a stand-in hub, the relay and simulated devices on loopback, to see the product at its main job.

Everything is real but the hub: TLS end to end from each device to the hub, MQTT and HTTPS in it, and `relay run` in
between as processes of its own. No part of the relay imports this package; it needs the extra `relay[demo]`.
"""

from __future__ import annotations
