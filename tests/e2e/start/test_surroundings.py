"""Bad surroundings: what is in the way of a start, `relay check` says in the same words and with the same status."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.namespace import UNSHARE, needs_namespace
from tests.support.programs import RELAY, ROOT, START, environment, launched
from tests.support.relay_toml import listener, settings
from tests.support.upstreams import Upstream, sender

IN_USE = "address already in use; stop what listens there (`ss -ltnp`), or choose another port"
NO_ADDRESS = "this machine has no such address; see `ip address`"
LIMIT = "raise LimitNOFILE or `ulimit -n`"
FOREIGN = "192.0.2.1"  # for documentation (RFC 5737): on nobody's interface

# With systemd's sockets: from descriptor 3 on, sd_listen_fds(3).
HANDED = """\
import os, socket, sys
count = int(sys.argv[1])
for number in range(count):
    sock = socket.create_server(("127.0.0.1", 0))
    os.dup2(sock.fileno(), 3 + number) if sock.fileno() != 3 + number else os.set_inheritable(3 + number, True)
    sock.detach()
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(count), LISTEN_FDNAMES="other.socket")
os.execv(sys.executable, [sys.executable, "-m", "relay", *sys.argv[2:]])
"""
FILES_OF_NO_SIZE = """\
import os, resource, sys
sys.dont_write_bytecode = True
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
from relay.cli import main
sys.exit(main())
"""


@dataclass
class Place:
    """Where relay is started: settings, what runs it, its limit of descriptors; and what it says, in part."""

    toml: str
    said: list[str]
    program: Sequence[str] = RELAY
    descriptors: int = 0
    environ: dict[str, str] = field(default_factory=dict)
    status: int = 1


def http(table: str, bind: str, toml: str) -> str:
    return toml.replace(f'[{table}]\nbind = "127.0.0.1:0"', f'[{table}]\nbind = "{bind}"')


def taken(stack: ExitStack) -> str:
    """A port of another program's, which answers: a check that asks there would wait for one that does not."""
    host, port = stack.enter_context(Upstream(sender(b"220 some mail server\r\n"))).address
    return f"{host}:{port}"


def shared(stack: ExitStack) -> str:
    """A port that another relay of the same user would have."""
    sock = stack.enter_context(socket.socket())
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(("127.0.0.1", 0))
    sock.listen()
    return f"127.0.0.1:{sock.getsockname()[1]}"


def places(stack: ExitStack) -> Iterator[tuple[str, Place]]:
    good = settings(listener("127.0.0.1:9"))
    busy = taken(stack)
    yield (
        "listener's port",
        Place(settings(listener("127.0.0.1:9", bind=[busy])), [f"listeners.main.bind: {busy}: {IN_USE}"]),
    )
    other = shared(stack)
    yield (
        "another relay's port",
        Place(settings(listener("127.0.0.1:9", bind=[other])), [f"listeners.main.bind: {other}: {IN_USE}"]),
    )
    wild = f"0.0.0.0:{busy.rpartition(':')[2]}"
    yield (
        "a port that somebody has at one address",
        Place(settings(listener("127.0.0.1:9", bind=[wild])), [f"listeners.main.bind: {wild}: {IN_USE}"]),
    )
    for table in ("admin", "health"):
        yield f"{table} port", Place(http(table, busy, good), [f"{table}.bind: {busy}: {IN_USE}"])
        yield (
            f"{table} address",
            Place(http(table, f"{FOREIGN}:9100", good), [f"{table}.bind: {FOREIGN}:9100: {NO_ADDRESS}"]),
        )
    yield (
        "listener's address",
        Place(
            settings(listener("127.0.0.1:9", bind=[f"{FOREIGN}:443"])),
            [f"listeners.main.bind: {FOREIGN}:443: {NO_ADDRESS}"],
        ),
    )
    yield (
        "source address",
        Place(
            settings(listener("127.0.0.1:9"), tables=f'[dial]\nsource_addresses = ["{FOREIGN}"]\n'),
            [f"dial.source_addresses: {FOREIGN}: {NO_ADDRESS}"],
        ),
    )
    several = settings(listener("127.0.0.1:9", bind=[busy, "127.0.0.1:0", f"{FOREIGN}:443"]))
    probes = taken(stack)
    yield (
        "everything at once",
        Place(
            http("health", probes, http("admin", f"{FOREIGN}:1", several)),
            [
                f"listeners.main.bind: {busy}: {IN_USE}",
                f"listeners.main.bind: {FOREIGN}:443: {NO_ADDRESS}",
                f"admin.bind: {FOREIGN}:1: {NO_ADDRESS}",
                f"health.bind: {probes}: {IN_USE}",
            ],
        ),
    )
    yield (
        "few descriptors",
        Place(good, [f"limits: the descriptor limit of 40 carries no connection; {LIMIT}"], descriptors=40),
    )
    yield (
        "descriptors for a worker and none for the supervisor",
        Place(
            settings(listener("127.0.0.1:9", bind=["127.0.0.1:0"] * 10), workers=8),
            [
                "limits: the descriptor limit of 120 is too low for 80 listening sockets, one for each address and "
                f"worker; {LIMIT}, or set fewer workers"
            ],
            descriptors=120,
        ),
    )
    addresses = [f"127.0.{number}.1:0" for number in range(100)]
    yield (
        "no descriptor for an address",
        Place(
            settings(listener("127.0.0.1:9", bind=addresses), workers=4),
            [f"listeners.main.bind: 127.0.99.1:0: no descriptor is left for it; {LIMIT}"],
            descriptors=300,
        ),
    )
    refusing = (sys.executable, "-m", "tests.support.without_io_uring", str(errno.EPERM), *RELAY)
    yield (
        "no io_uring",
        Place(f'engine = "ring"\n{good}', ['engine: "ring" does not work here: io_uring_setup: '], refusing),
    )
    yield (
        "no shared memory",
        Place(
            f'engine = "stream"\n{good}',
            ["no shared memory for the counters of 1 workers: file too large"],
            (sys.executable, "-c", FILES_OF_NO_SIZE),
        ),
    )
    handed = (sys.executable, "-c", HANDED, "1")
    yield "a socket of systemd's for nobody", Place(good, ['systemd\'s socket "other.socket" at 127.0.0.1:'], handed)
    # Wrong on every machine.
    yield (
        "wrong settings",
        Place(
            settings(listener("127.0.0.1:9"), tables="[tcp]\nkeepalive_count = 0\n"),
            ["tcp.keepalive_count: "],
            status=2,
        ),
    )
    yield (
        "wrong settings, and a port in use",
        Place(
            http("admin", busy, settings(listener("127.0.0.1:9"), tables="[tcp]\nkeepalive_count = 0\n")),
            ["tcp.keepalive_count: "],
            status=2,
        ),
    )
    many = [f"127.0.{number // 200}.{number % 200 + 1}:0" for number in range(247)]
    yield (
        "too many addresses",
        Place(
            settings(listener("127.0.0.1:9", bind=many[:100]), listener("127.0.0.1:9", name="b", bind=many[100:])),
            ["listeners: 247 addresses to listen on, over all `bind`; at most 246"],
            status=2,
        ),
    )
    yield (
        "admin and health at one port",
        Place(
            http("admin", "127.0.0.1:9100", http("health", "127.0.0.1:9100", good)),
            ['health.bind: "127.0.0.1:9100" is already bound by admin.bind; every bind address is bound once'],
            status=2,
        ),
    )
    yield (
        "a listener at the health port",
        Place(
            http("health", "0.0.0.0:8080", settings(listener("127.0.0.1:9", bind=["127.0.0.1:8080"]))),
            ['health.bind: "0.0.0.0:8080" is already bound by listeners[0].bind[0]; every bind address is bound once'],
            status=2,
        ),
    )
    yield (
        "a variable that is no setting",
        Place(good, ["RELAY_LIMIT: unknown setting; "], environ={"RELAY_LIMIT": "1"}, status=2),
    )


with ExitStack() as _names:
    NAMES = [name for name, _ in places(_names)]


def outcome(place: Place, command: str, config: Path) -> tuple[int, list[str]]:
    line = launched([*place.program, command, "--config", str(config)], place.descriptors)
    done = subprocess.run(
        line,
        cwd=ROOT,
        env={**environment(), **place.environ},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=START,
    )
    if command == "run":
        assert done.stdout == "", "nothing was started"
    return done.returncode, done.stderr.splitlines()


@pytest.mark.parametrize("name", NAMES)
def test_check_and_run_say_the_same(tmp_path: Path, name: str) -> None:
    with ExitStack() as stack:
        place = dict(places(stack))[name]
        config = tmp_path / "relay.toml"
        config.write_text(place.toml)
        status, lines = outcome(place, "run", config)
        assert status == place.status, lines
        for line in place.said:
            assert any(said.startswith(f"relay: {line}") for said in lines), lines
        if name == "a socket of systemd's for nobody":  # each has a port of its own
            place.said, lines = [], [line.partition(" at ")[0] for line in lines]
            status, checked = outcome(place, "check", config)
            assert (status, [line.partition(" at ")[0] for line in checked]) == (place.status, lines)
            return
        assert outcome(place, "check", config) == (status, lines)


@needs_namespace
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to turn IPv6 off in a network namespace of its own")
@pytest.mark.parametrize(
    ("binds", "said"),
    [
        (["[::1]:8443"], [f"relay: listeners.main.bind: [::1]:8443: {NO_ADDRESS}"]),
        (
            ["[::1]:8443", "[::1]:8444"],
            ["relay: listeners.main.bind: none of its addresses can be had on this machine"],
        ),
    ],
)
def test_a_machine_without_ipv6(tmp_path: Path, binds: list[str], said: list[str]) -> None:
    config = tmp_path / "relay.toml"
    config.write_text(settings(listener("127.0.0.1:9", bind=binds)))
    for command in ("run", "check"):
        script = 'ip link set lo up; sysctl -qw net.ipv6.conf.all.disable_ipv6=1; exec "$@"'
        line = [*UNSHARE, "sh", "-c", script, "sh", *RELAY, command, "--config", str(config)]
        done = subprocess.run(line, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=START)
        assert (done.returncode, done.stderr.splitlines()) == (1, said), done


def test_what_would_start_is_well(tmp_path: Path) -> None:
    """An address beside the wildcard of its port is two listeners', and neither is in the other's way."""
    with ExitStack() as stack:
        port = stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
    config = tmp_path / "relay.toml"
    toml = settings(listener("127.0.0.1:9", bind=[f"127.0.0.1:{port}"]), listener("127.0.0.1:9", name="all",
                    bind=[f"0.0.0.0:{port}"]))  # fmt: skip
    config.write_text(toml)
    assert outcome(Place(toml, []), "check", config) == (0, [])
