"""The ways from client to upstream that are compared, and the proxies on them, each a real process."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from http.client import HTTPException  # raised if another program has the port
from pathlib import Path

from bench.peers import wait_for_port
from bench.watch import Process, Watch

DIRECT, RING, STREAM, HAPROXY = "direct", "ring", "stream", "haproxy"
# Without health checks, whose connections would belong to no script.
RELAY_CONFIG = """\
engine = "{engine}"
workers = 2
[admin]
bind = "127.0.0.1:{admin}"
[health]
bind = ""
[drain]
announce = 0.0
window = 5.0
[health_check]
interval = 0
"""
RELAY_LANE = """\
[[listeners]]
name = "lane{number}"
bind = ["127.0.0.1:{port}"]
upstream = ["127.0.0.1:{upstream}"]
"""
# Without retries: a second connection for the same client would be taken for that of the next script.
HAPROXY_CONFIG = """\
global
  maxconn 4000
defaults
  mode tcp
  retries 0
  timeout connect 5s
  timeout client 1h
  timeout server 1h
frontend ready
  bind 127.0.0.1:{admin}
  tcp-request connection reject
"""
HAPROXY_LANE = """\
listen lane{number}
  bind 127.0.0.1:{port}
  server upstream 127.0.0.1:{upstream}
"""


@dataclass(slots=True)
class Tally:
    """The counts of one way. Scripts are counted by kind and by the end that acts first."""

    played: Counter[str] = field(default_factory=Counter)
    different: Counter[str] = field(default_factory=Counter)
    allowed: Counter[str] = field(default_factory=Counter)  # ends with an allowed difference, by reason
    resets: Counter[str] = field(default_factory=Counter)  # scripts, by `Script.reset_by`
    bytes: int = 0  # received at both ends
    slowest: tuple[float, str] = (0.0, "")  # longest seconds until an end got a reset, and the script


@dataclass(slots=True)
class Way:
    """One way from client to upstream.

    A lane is a pair of ports on which one script at a time is played. So a connection that the upstream accepts there
    belongs to that script, even if the client never sends a byte.
    """

    name: str
    ports: list[int]  # where the client connects, by lane
    upstreams: list[int]
    admin: int = 0
    listeners: list[socket.socket] = field(default_factory=list)
    process: subprocess.Popen[bytes] | None = None
    fresh: list[Process] = field(default_factory=list)
    warm: list[Process] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)

    @property
    def watch(self) -> Watch:
        return Watch(self.admin)

    @property
    def relay(self) -> bool:
        return self.name in (RING, STREAM)

    def start(self, folder: Path) -> None:
        """Start the proxy of this way, if it has one, and wait until it serves."""
        if self.name == DIRECT:
            return
        head, lane = (RELAY_CONFIG, RELAY_LANE) if self.relay else (HAPROXY_CONFIG, HAPROXY_LANE)
        text = head.format(engine=self.name, admin=self.admin)
        for number, (port, upstream) in enumerate(zip(self.ports, self.upstreams, strict=True)):
            text += lane.format(number=number, port=port, upstream=upstream)
        config = folder / f"{self.name}.conf"
        config.write_text(text)
        relay = [sys.executable, "-m", "relay", "run", "--config"]
        command = [*(relay if self.relay else ["haproxy", "-db", "-f"]), str(config)]
        with self.log(folder).open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        try:
            wait_for_port(self.admin)  # not a port of a lane: a connection there would be passed on
            if self.relay:
                self.watch.ready()
                self.fresh = self.watch.processes()
        except (OSError, HTTPException, SystemExit):
            said = self.log(folder).read_text(errors="replace")[-2000:]
            raise SystemExit(f"bench: {self.name} does not start:\n{said}") from None

    def log(self, folder: Path) -> Path:
        return folder / f"{self.name}.log"

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM if self.relay else signal.SIGKILL)
            self.process.wait(30)
