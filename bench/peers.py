"""The proxies that are compared, each as real processes on one pinned processor, and the reading of their cost.

Each accepts on two loopback ports and passes connections to the same two upstreams. CPU time and memory are the sums
over all processes and threads of a proxy, as the kernel accounts for them.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

PROXY_CPU = 0
LOAD_CPU = 1
HELLO_NAME = "hub.example"
HELLO_SIZE = 517  # bytes, as OpenSSL pads it (RFC 7685)
HERE = Path(__file__).parent

HAPROXY_CONFIG = """\
global
  maxconn 6000
  nbthread 1
defaults
  mode tcp
  timeout connect 5s
  timeout client 1h
  timeout server 1h
frontend echo
  bind 127.0.0.1:{echo} backlog 4096
  default_backend echo
frontend sink
  bind 127.0.0.1:{sink} backlog 4096
  default_backend sink
backend echo
  server upstream 127.0.0.1:{upstream_echo}
backend sink
  option splice-auto
  server upstream 127.0.0.1:{upstream_sink}
"""

# In place of the frontend `echo` above: the backend by the server name of the hello, from a map.
HAPROXY_ROUTED = """\
frontend echo
  bind 127.0.0.1:{echo} backlog 4096
  tcp-request inspect-delay 5s
  tcp-request content accept if { req.ssl_hello_type 1 }
  tcp-request content reject
  use_backend %[req.ssl_sni,lower,map({map},none)]
backend none
  tcp-request content reject
"""

ROUTE = """\
[[listeners.routes]]
name = "r{number}"
sni = ["{sni}"]
upstream = ["127.0.0.1:{{upstream_echo}}"]
"""
RELAY_CONFIG = """\
workers = 1
engine = "{engine}"
[access]
allow = {networks}
[admin]
bind = ""
[health]
bind = ""
[limits]
max_connections = 6000
max_connections_per_source = {per_source}
connect_rate_per_source = {rate}
connect_burst_per_source = 1000000
accept_rate = {rate}
[log]
access = {access}
[[listeners]]
name = "echo"
bind = ["127.0.0.1:{echo}"]
upstream = ["127.0.0.1:{upstream_echo}"]
sni = {sni}
max_connections = 6000
{routes}
[[listeners]]
name = "sink"
bind = ["127.0.0.1:{sink}"]
upstream = ["127.0.0.1:{upstream_sink}"]
"""


@dataclass(slots=True)
class Peer:
    """One proxy under test."""

    name: str
    echo: int
    sink: int
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def pids(self) -> list[int]:
        """The process ids of the proxy and their children."""
        found: list[int] = []
        waiting = [process.pid for process in self.processes]
        while waiting:
            pid = waiting.pop()
            found.append(pid)
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                waiting += map(int, children.read_text().split())
        return found

    def cpu_seconds(self) -> float:
        """CPU time used so far; proc(5): the first field of schedstat is nanoseconds on the processor."""
        paths = [path for pid in self.pids() for path in Path(f"/proc/{pid}/task").glob("*/schedstat")]
        return sum(int(path.read_text().split()[0]) for path in paths) / 1e9

    def memory_kib(self) -> int:
        """Memory of all processes (proportional set size)."""
        total = 0
        for pid in self.pids():
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1])
        return total


class Bench:
    """Starts upstreams and proxies on ports from `base` on; `close` ends exactly these."""

    def __init__(self, folder: Path, base: int, python: str) -> None:
        self.folder = folder
        self.python = python
        self.upstream_echo, self.upstream_sink = base, base + 1
        self._next_port = base + 2
        self._started: list[subprocess.Popen[bytes]] = []
        self._relays: list[subprocess.Popen[bytes]] = []
        self.load = folder / "load"
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            raise SystemExit("bench: the load generator needs a C compiler (apt-get install gcc libc6-dev)")
        self.hello = folder / "hello"
        self.hello.write_bytes(client_hello())
        subprocess.run([compiler, "-O2", "-o", str(self.load), str(HERE / "load.c")], check=True)

    def start_upstreams(self) -> None:
        """Start the echo and the sink on the processor of the load, not on that of the proxies."""
        self._start(LOAD_CPU, [str(self.load), "echo", str(self.upstream_echo)])
        self._start(LOAD_CPU, [str(self.load), "sink", str(self.upstream_sink)])
        wait_for_port(self.upstream_echo)
        wait_for_port(self.upstream_sink)

    def haproxy(self) -> Peer:
        """Start HAProxy with one thread. Raises SystemExit, which says how to install it."""
        if shutil.which("haproxy") is None:
            raise SystemExit("bench: no haproxy to compare with (apt-get install haproxy)")
        return self._peer("haproxy", HAPROXY_CONFIG, "haproxy.cfg", ["haproxy", "-db", "-f"])

    def haproxy_routes(self, count: int) -> Peer:
        """Start HAProxy with a backend chosen by the server name, from a map of `count` names."""
        file = self.folder / "names.map"
        file.write_text("".join(f"{name} echo\n" for name in names(count)))
        plain = HAPROXY_CONFIG.partition("frontend echo\n")
        routed = HAPROXY_ROUTED.replace("{ ", "{{ ").replace(" }", " }}").replace("{map}", str(file))
        config = plain[0] + routed + "frontend sink\n" + plain[2].partition("frontend sink\n")[2]
        return self._peer("haproxy-routes", config, "haproxy-routes.cfg", ["haproxy", "-db", "-f"])

    def relay(
        self,
        name: str = "relay",
        *,
        engine: str = "ring",
        access: bool = False,
        networks: int = 0,
        gated: bool = False,
        routes: Sequence[str] = (),
    ) -> Peer:
        """Start relay with one worker, limits and accounting on.

        `networks`: so many on its access list, and a limit for each source; `gated`: rates that are never reached, and
        TLS for one name only. `routes`: a route for each of these names, all to the same upstream.
        """
        values = {
            "{access}": str(access).lower(),
            "{engine}": engine,
            "{networks}": json.dumps(_networks(networks)),
            "{per_source}": "6000" if networks else "0",
            "{rate}": "1000000.0" if gated else "0.0",
            "{sni}": json.dumps([HELLO_NAME] if gated else []),
            "{routes}": "".join(ROUTE.format(number=number, sni=sni) for number, sni in enumerate(routes)),
        }
        config = RELAY_CONFIG
        for key, value in values.items():
            config = config.replace(key, value)
        command = [self.python, "-m", "relay", "run", "--config"]
        peer = self._peer(name, config, f"{name}.toml", command)
        self._relays += peer.processes
        return peer

    def bare_uvloop(self) -> Peer:
        """Start `bare_uvloop`: uvloop's own transports with next to nothing around them."""
        peer = Peer("uvloop", self._port(), self._port())
        for listen, upstream in ((peer.echo, self.upstream_echo), (peer.sink, self.upstream_sink)):
            command = [self.python, str(HERE / "bare_uvloop.py"), str(listen), str(upstream)]
            peer.processes.append(self._start(PROXY_CPU, command))
        self._await(peer)
        return peer

    def close(self) -> None:
        """End everything, in the reverse order of starting."""
        for process in reversed(self._started):
            # SIGINT lets relay end its workers; HAProxy and the others have nothing to tidy up.
            process.send_signal(signal.SIGINT if process in self._relays else signal.SIGKILL)
        for process in self._started:
            process.wait(10)

    def _peer(self, name: str, config: str, file: str, command: list[str]) -> Peer:
        peer = Peer(name, self._port(), self._port())
        path = self.folder / file
        ports = {"echo": peer.echo, "sink": peer.sink}
        upstreams = {"upstream_echo": self.upstream_echo, "upstream_sink": self.upstream_sink}
        path.write_text(config.format(**ports, **upstreams))
        peer.processes.append(self._start(PROXY_CPU, [*command, str(path)]))
        self._await(peer)
        return peer

    def _await(self, peer: Peer) -> None:
        wait_for_port(peer.echo)
        wait_for_port(peer.sink)

    def _port(self) -> int:
        self._next_port += 1
        return self._next_port - 1

    def _start(self, cpu: int, command: list[str]) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
        with (self.folder / "output.log").open("ab") as log:
            process = subprocess.Popen(
                ["taskset", "-c", str(cpu), *command], stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment
            )
        self._started.append(process)
        return process


def names(count: int) -> list[str]:
    """Server names, the last of which is that of the hello."""
    return [*(f"hub{number}.example" for number in range(count - 1)), HELLO_NAME]


def _networks(count: int) -> list[str]:
    """Loopback, and further networks that are not adjacent."""
    return ["127.0.0.0/8", *(f"10.{number >> 7}.{number % 128 * 2}.0/24" for number in range(count - 1))][:count]


def client_hello() -> bytes:
    """The TLS hello of this Python. Raises SystemExit unless it has HELLO_SIZE bytes: others do not compare."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname=HELLO_NAME)
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    hello = outgoing.read()
    if len(hello) != HELLO_SIZE:
        raise SystemExit(f"bench: this Python's TLS hello has {len(hello)} bytes, not {HELLO_SIZE}")
    return hello


def wait_for_port(port: int, seconds: float = 20.0) -> None:
    """Wait until something accepts on a port."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise SystemExit(f"bench: nothing accepts on port {port} after {seconds:g} s")


def describe(python: str) -> dict[str, str]:
    """Versions and machine of a comparison, without which its figures mean nothing."""
    version = "import platform, sys; print(platform.python_version(), sys.executable)"
    haproxy = subprocess.run(["haproxy", "-v"], capture_output=True, text=True, check=False).stdout
    processors = Path("/proc/cpuinfo").read_text().splitlines()
    model = [line.partition(":")[2].strip() for line in processors if "model name" in line]
    return {
        "kernel": os.uname().release,
        "machine": os.uname().machine,
        "processor": f"{model[0] if model else 'unknown'}, {os.cpu_count()} CPUs",
        "python": subprocess.run([python, "-c", version], capture_output=True, text=True, check=True).stdout.strip(),
        "haproxy": haproxy.splitlines()[0] if haproxy else "none",
        "bench python": sys.version.split()[0],
    }
