"""From settings to descriptors: ports that are taken, limits that the machine sets, and what an operator is told."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from relay.engines.contract import TcpOptions
from relay.settings.model import Settings, load
from relay.settings.problems import MOST_ADDRESSES
from relay.supervisor import host, listening, prepare
from relay.supervisor.instance import Instance, StartError
from relay.supervisor.prepare import RESERVED_DESCRIPTORS, watchdog_notes
from tests.support.programs import ROOT

IPV6 = Path("/proc/net/if_inet6")


def toml(
    *binds: list[str], workers: int = 2, limits: str = "", upstreams: list[str] | None = None, engine: str = "auto"
) -> str:
    """Settings with a listener for each list of addresses."""
    text = f'workers = {workers}\nengine = "{engine}"\n[limits]\n{limits}\n'
    for number, bind in enumerate(binds or [["127.0.0.1:0"]]):
        text += f'[[listeners]]\nname = "l{number}"\nbind = {json.dumps(bind)}\n'
        text += f"upstream = {json.dumps(upstreams or ['127.0.0.1:9'])}\n"
    return text


def loaded(path: Path, text: str) -> Settings:
    file = path / "relay.toml"
    file.write_text(text)
    return load(file, {})


@contextmanager
def prepared(path: Path, text: str) -> Iterator[Instance]:
    instance = prepare.prepare(loaded(path, text))
    try:
        yield instance
    finally:
        instance.close_sockets()


# --- ports -----------------------------------------------------------------------------------------------------------


@contextmanager
def listening_elsewhere(host: str = "127.0.0.1") -> Iterator[int]:
    """A port on which another process listens as a relay does, with SO_REUSEPORT."""
    code = (
        "import sys; from relay.engines.contract import TcpOptions\n"
        "from relay.supervisor.listening import bind_listener\n"
        f"sock = bind_listener({host!r}, 0, TcpOptions())\n"
        "print(sock.getsockname()[1], flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        yield int(process.stdout.readline())
        process.kill()


def test_another_process_that_shares_its_port_is_noticed(tmp_path: Path) -> None:
    with listening_elsewhere() as port:
        listening.bind_listener("127.0.0.1", port, TcpOptions()).close()  # the kernel itself would not mind
        for host in ("127.0.0.1", "0.0.0.0"):
            with pytest.raises(OSError, match="in use") as raised:
                listening.bind_listener(host, port, TcpOptions(), claim=True)
            assert raised.value.errno == errno.EADDRINUSE
        with pytest.raises(StartError) as refused:
            prepare.prepare(loaded(tmp_path, toml([f"127.0.0.1:{port}"])))
    assert refused.value.problems == [
        f"listeners.l0.bind: 127.0.0.1:{port}: address already in use; stop what listens there (`ss -ltnp`), "
        "or choose another port"
    ]


def test_a_port_can_be_claimed_while_old_connections_linger() -> None:
    """TIME_WAIT of the relay before this one does not stop a restart."""
    first = listening.bind_listener("127.0.0.1", 0, TcpOptions())
    port = first.getsockname()[1]
    with socket.create_connection(("127.0.0.1", port)) as client:
        first.setblocking(True)
        accepted, _ = first.accept()
        accepted.close()  # the side that closes first is the one that waits
        first.close()
        assert client.recv(1) == b""
    with listening.bind_listener("127.0.0.1", port, TcpOptions(), claim=True) as claimed:
        assert claimed.getsockname()[1] == port


def test_port_0_is_one_free_port_for_all_workers(tmp_path: Path) -> None:
    with prepared(tmp_path, toml(["127.0.0.1:0"], ["127.0.0.1:0"], workers=3)) as instance:
        for bound in instance.listeners:
            ports = {sock.getsockname()[1] for binding in bound.bindings for sock in binding.sockets}
            assert len(ports) == 1
            assert bound.addresses == [f"127.0.0.1:{ports.pop()}"]
        assert instance.listeners[0].addresses != instance.listeners[1].addresses
        assert [len(instance.worker_sockets(index)) for index in range(3)] == [2, 2, 2]


@pytest.mark.skipif(not IPV6.exists() or not IPV6.read_text(), reason="this machine has no IPv6")
def test_both_families_may_have_the_same_port(tmp_path: Path) -> None:
    with listening_elsewhere() as port, prepared(tmp_path, toml([f"[::1]:{port}"])) as instance:
        assert instance.listeners[0].addresses == [f"[::1]:{port}"]


def open_files() -> set[tuple[int, int]]:
    """What this process has open, by inode: what other tests left may go meanwhile, and its numbers come back."""
    found = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # the folder's own
            status = os.fstat(int(descriptor.name))
            found.add((status.st_dev, status.st_ino))
    return found


def test_every_mistake_is_told_and_nothing_is_left_open(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        before = open_files()
        # 192.0.2.0/24 is for documentation (RFC 5737): no machine has it.
        text = toml(["127.0.0.1:0"], [f"127.0.0.1:{port}"], ["192.0.2.1:8883"])
        with pytest.raises(StartError) as raised:
            prepare.prepare(loaded(tmp_path, text))
        assert open_files() <= before, "what could be bound was let go"
    first, second = raised.value.problems
    assert first.startswith(f"listeners.l1.bind: 127.0.0.1:{port}: address already in use")
    assert second == "listeners.l2.bind: 192.0.2.1:8883: this machine has no such address; see `ip address`"
    assert str(raised.value) == f"{first}; {second}"


def test_a_machine_without_ipv6_is_a_note_while_there_is_another_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = listening.bind_listener

    def no_ipv6(host: str, port: int, tcp: TcpOptions, *, claim: bool = False, listen: bool = True) -> socket.socket:
        if ":" in host:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return real(host, port, tcp, claim=claim, listen=listen)

    monkeypatch.setattr(listening, "bind_listener", no_ipv6)
    with prepared(tmp_path, toml(["127.0.0.1:0", "[::]:8883"])) as instance:
        assert instance.notes == ["listeners.l0.bind: [::]:8883: no IPv6 on this machine; not listening there"]
    with pytest.raises(StartError, match=r"listeners\.l0\.bind: \[::\]:8883: "):
        prepare.prepare(loaded(tmp_path, toml(["[::]:8883"])))
    with pytest.raises(StartError, match=r"listeners\.l0\.bind: none of its addresses can be had on this machine"):
        prepare.prepare(loaded(tmp_path, toml(["[::]:8883", "[::1]:8884"])))


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (errno.EACCES, "permission denied; port 443 needs CAP_NET_BIND_SERVICE (or root), ports from 1024 on do not"),
        (errno.EADDRNOTAVAIL, "this machine has no such address; see `ip address`"),
        (errno.ENOBUFS, "no buffer space available"),
    ],
)
def test_what_is_wrong_with_an_address(number: int, text: str) -> None:
    assert host.bind_error(OSError(number, ""), 443) == text


# --- descriptors -----------------------------------------------------------------------------------------------------


def under_limits(path: Path, text: str, soft: int, hard: int) -> dict[str, Any]:
    """What a start comes to where the descriptor limit is this."""
    file = path / "relay.toml"
    file.write_text(text)
    result = subprocess.run(
        [sys.executable, "-m", "tests.supervisor.low_limits", str(soft), str(hard), str(file)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert result.returncode == 0, result.stderr
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer


def test_the_soft_limit_is_raised_to_the_hard_one_and_says_how_many_connections(tmp_path: Path) -> None:
    answer = under_limits(tmp_path, toml(["127.0.0.1:0", "127.0.0.1:0"], workers=3), soft=256, hard=1000)
    capacity = (1000 - RESERVED_DESCRIPTORS - 2) // 2  # two for each connection
    assert answer == {
        "descriptors": 1000,
        "limit": 1000,
        "capacity": capacity,
        "instance": 3 * capacity,
        "sockets": 6,
        "notes": [],
    }


def test_a_limit_that_descriptors_cannot_carry_is_told(tmp_path: Path) -> None:
    answer = under_limits(tmp_path, toml(limits="max_connections = 20000"), soft=256, hard=1000)
    carried = 2 * ((1000 - RESERVED_DESCRIPTORS - 1) // 2)
    assert answer["instance"] == carried
    assert answer["notes"] == [
        f"limits.max_connections is 20000, but 1000 descriptors a worker carry {carried} connections in all: "
        "raise LimitNOFILE or `ulimit -n`"
    ]


def test_a_limit_that_descriptors_carry_is_taken_as_it_is(tmp_path: Path) -> None:
    answer = under_limits(tmp_path, toml(limits="max_connections = 500"), soft=256, hard=1000)
    assert (answer["instance"], answer["notes"]) == (500, [])


@pytest.mark.parametrize(
    ("hang_timeout", "watchdog", "note"),
    [
        (10, 60.0, ""),
        (45, 60.0, ""),
        (0, 0.0, ""),
        (50, 60.0, "after 50 s, too close to the service manager's watchdog (60 s): make WatchdogSec 65 or more"),
        (10, 5.0, "after 10 s, too close to the service manager's watchdog (5 s): make WatchdogSec 25 or more"),
        (0, 60.0, "never, unlike all of relay, by the service manager's watchdog (60 s): set it, to 10 say"),
    ],
)
def test_a_watchdog_that_would_not_wait_for_a_worker_to_be_replaced(
    tmp_path: Path, hang_timeout: float, watchdog: float, note: str
) -> None:
    settings = loaded(tmp_path, toml() + f"[supervision]\nhang_timeout = {hang_timeout}\n")
    notes = watchdog_notes(settings, watchdog)
    assert notes == ([f"supervision.hang_timeout: a worker that hangs is replaced {note}"] if note else [])


def test_too_few_descriptors_for_a_single_connection(tmp_path: Path) -> None:
    fewest = RESERVED_DESCRIPTORS + 1 + 2
    assert under_limits(tmp_path, toml(workers=1), fewest, fewest)["capacity"] == 1
    assert under_limits(tmp_path, toml(workers=1), fewest - 1, fewest - 1) == {
        "problems": [
            f"limits: the descriptor limit of {fewest - 1} carries no connection; raise LimitNOFILE or `ulimit -n`"
        ]
    }


def test_the_limit_is_raised_before_the_sockets_are_bound(tmp_path: Path) -> None:
    """Many workers with many addresses have more listening sockets than the usual soft limit allows."""
    answer = under_limits(tmp_path, toml(*[["127.0.0.1:0"]] * 10, workers=20), soft=100, hard=1000)
    assert answer.get("sockets") == 200, answer


def test_as_many_addresses_as_a_control_message_carries(tmp_path: Path) -> None:
    answer = under_limits(tmp_path, toml(["127.0.0.1:0"] * MOST_ADDRESSES, workers=1), 2000, 2000)
    assert answer.get("sockets") == MOST_ADDRESSES == 246, answer


# --- the instance ----------------------------------------------------------------------------------------------------


def test_the_same_upstream_of_two_listeners_is_one(tmp_path: Path) -> None:
    text = toml(["127.0.0.1:0"], ["127.0.0.1:0"], upstreams=["hub.example:8883", "[fd00::1]:8883"])
    with prepared(tmp_path, text) as instance:
        assert instance.upstreams == ["hub.example:8883", "[fd00::1]:8883"]
        expected = ((0, "hub.example", 8883), (1, "fd00::1", 8883))
        assert [bound.upstreams for bound in instance.listeners] == [expected, expected]


def test_sources_have_buckets_only_where_they_are_limited(tmp_path: Path) -> None:
    with prepared(tmp_path, toml()) as instance:
        assert instance.limits.per_source == 0
        assert instance.limits.source_cells > 0, "a reload may set one"
    with prepared(tmp_path, toml(limits="max_connections = 3000\nmax_connections_per_source = 5")) as instance:
        assert instance.limits.per_source == 5
        assert instance.limits.source_buckets * 2 >= 3000


def test_each_worker_is_told_its_own_number_and_the_same_secret(tmp_path: Path) -> None:
    with prepared(tmp_path, toml(limits="max_connections_per_source = 5")) as instance:
        specs = [instance.worker_spec(index) for index in range(2)]
        assert [spec.index for spec in specs] == [0, 1]
        assert len({spec.source_key for spec in specs}) == 1
        assert len(bytes.fromhex(specs[0].source_key)) == 16
        assert [spec.listeners[0].addresses for spec in specs] == [((instance.listeners[0].addresses[0], False),)] * 2
    with prepared(tmp_path, toml()) as other:
        assert other.source_key != instance.source_key


# --- source addresses ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ports", "reserved", "expected"),
    [
        ("32768\t60999\n", "\n", 28232),
        ("1024 65535", "8080,9100-9109\n", 64501),
        ("40000 40009", "1-39999,40005,40008-50000", 7),
        ("nonsense", "", 28232),
    ],
)
def test_ports_that_the_kernel_chooses_from(tmp_path: Path, ports: str, reserved: str, expected: int) -> None:
    (tmp_path / "ip_local_port_range").write_text(ports)
    (tmp_path / "ip_local_reserved_ports").write_text(reserved)
    assert host.source_ports(tmp_path) == expected


def test_a_source_address_that_this_machine_does_not_have_stops_the_start(tmp_path: Path) -> None:
    text = toml().replace("[limits]", '[dial]\nsource_addresses = ["127.0.0.1", "192.0.2.77"]\n[limits]')
    with pytest.raises(StartError) as caught:
        prepare.prepare(loaded(tmp_path, text))
    assert caught.value.problems == [
        "dial.source_addresses: 192.0.2.77: this machine has no such address; see `ip address`"
    ]
