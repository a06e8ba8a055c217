"""Sockets that the service manager hands over: which are taken, whose they are, and what is said of the others."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from relay.engines.contract import TcpOptions
from relay.supervisor.systemd import socket_activation
from relay.supervisor.systemd.socket_activation import Assignment, Inherited, ListenFds, assign, bindings, listen_fds

HTTPS = ("https", ["0.0.0.0:443", "[::]:443"])
MQTT = ("mqtt", ["0.0.0.0:8883", "[::]:8883"])


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


def tcp(stack: ExitStack, host: str = "127.0.0.1", *, dual: bool = False) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return stack.enter_context(socket.create_server((host, 0), family=family, dualstack_ipv6=dual))


def handed(stack: ExitStack, *sockets: socket.socket, names: str = "", pid: int = 0) -> ListenFds:
    """What is taken of them. They are put where nobody else's descriptors are."""
    first = 900
    for number, sock in enumerate(sockets):
        os.dup2(sock.fileno(), first + number)
        stack.callback(_close, first + number)
    environ = {"LISTEN_PID": str(pid or os.getpid()), "LISTEN_FDS": str(len(sockets)), "LISTEN_FDNAMES": names, "A": ""}
    taken = listen_fds(environ, first)
    assert environ == {"A": ""}
    return taken


def _close(descriptor: int) -> None:
    with contextlib.suppress(OSError):
        os.close(descriptor)


# --- taking ---------------------------------------------------------------------------------------------------------


def test_nothing_is_taken_where_nothing_was_handed_over() -> None:
    assert listen_fds({}) == ([], [])
    assert listen_fds({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "many"}) == ([], [])


def test_another_processs_sockets_are_left_alone(stack: ExitStack) -> None:
    assert handed(stack, tcp(stack), pid=1) == ([], [])


def test_each_socket_has_its_name_and_its_address(stack: ExitStack) -> None:
    four, six, both = tcp(stack), tcp(stack, "::1"), tcp(stack, "::", dual=True)
    found, problems = handed(stack, four, six, both, names="mqtt:relay.socket")
    assert problems == []
    assert found == [
        Inherited(900, "mqtt", "127.0.0.1", four.getsockname()[1]),
        Inherited(901, "relay.socket", "::1", six.getsockname()[1]),
        Inherited(902, "unknown", "::", both.getsockname()[1], dual=True),
    ]
    assert not any(os.get_inheritable(one.fd) for one in found)


def test_an_ipv6_wildcard_of_its_own_family_only_is_not_dual(stack: ExitStack) -> None:
    ((one,), _) = handed(stack, tcp(stack, "::"))
    assert not one.dual


def test_what_cannot_be_accepted_from_is_named_and_the_rest_is_taken(stack: ExitStack) -> None:
    bound = stack.enter_context(socket.socket())
    bound.bind(("127.0.0.1", 0))
    datagrams = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    local = stack.enter_context(socket.socket(socket.AF_UNIX))
    reader, writer = os.pipe()
    stack.callback(os.close, reader)
    stack.callback(os.close, writer)
    good = tcp(stack)
    os.dup2(reader, 904)
    stack.callback(_close, 904)
    environ = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "6", "LISTEN_FDNAMES": "a:b:c:d:e:f"}
    for number, sock in enumerate((bound, datagrams, local, good)):
        os.dup2(sock.fileno(), 900 + number)
        stack.callback(_close, 900 + number)
    found, problems = listen_fds(environ, 900)
    assert [one.name for one in found] == ["d"]
    assert problems == [
        'systemd\'s socket "a", number 1 of 6: does not listen; use ListenStream= with Accept=no',
        'systemd\'s socket "b", number 2 of 6: is not TCP; use ListenStream= with an address and a port',
        'systemd\'s socket "c", number 3 of 6: is not TCP; use ListenStream= with an address and a port',
        'systemd\'s socket "e", number 5 of 6: Socket operation on non-socket',
        'systemd\'s socket "f", number 6 of 6: Bad file descriptor',
    ]


def test_a_program_started_the_way_systemd_does_finds_its_sockets_and_leaves_none_to_its_children() -> None:
    script = (
        "import os, subprocess, sys; from relay.supervisor.systemd.socket_activation import listen_fds\n"
        "print(*[one.address for one in listen_fds(os.environ).sockets], flush=True)\n"
        "subprocess.run([sys.executable, '-c', 'import os; print(sorted(k for k in os.environ if \"LISTEN\" in k), "
        'os.listdir("/proc/self/fd"))\'], close_fds=False)'
    )
    with socket.create_server(("127.0.0.1", 0)) as sock:
        start = (
            "import os, sys; fd = int(sys.argv[1]); fd == 3 or os.dup2(fd, 3); os.set_inheritable(3, True)\n"
            "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1')\n"
            "os.execv(sys.executable, [sys.executable, '-c', sys.argv[2]])"
        )
        done = subprocess.run(
            [sys.executable, "-c", start, str(sock.fileno()), script],
            pass_fds=[sock.fileno()], capture_output=True, text=True, timeout=30,
        )  # fmt: skip
        assert done.stderr == ""
        address, children = done.stdout.splitlines()
        assert address == f"127.0.0.1:{sock.getsockname()[1]}"
    assert children.startswith("[] ")
    assert "'3', '4'" not in children  # 3 is the listing itself


# --- whose they are -------------------------------------------------------------------------------------------------


def at(host: str, port: int, name: str = "relay.socket", *, dual: bool = False) -> Inherited:
    return Inherited(99, name, host, port, dual)


def whose(found: Assignment) -> list[tuple[str, str, list[str]]]:
    return [(one.socket.address, one.listener, one.binds) for one in found.assigned]


def test_without_sockets_there_is_nothing_to_say() -> None:
    assert assign([], [HTTPS, MQTT]) == ([], [], [])


def test_a_socket_belongs_to_the_listener_with_its_address() -> None:
    sockets = [at("::", 8883), at("0.0.0.0", 443), at("0.0.0.0", 8883), at("::", 443)]
    found = assign(sockets, [HTTPS, MQTT])
    assert whose(found) == [
        ("[::]:8883", "mqtt", ["[::]:8883"]),
        ("0.0.0.0:443", "https", ["0.0.0.0:443"]),
        ("0.0.0.0:8883", "mqtt", ["0.0.0.0:8883"]),
        ("[::]:443", "https", ["[::]:443"]),
    ]
    assert (found.problems, found.notes) == ([], [])


@pytest.mark.parametrize("name", ["relay.socket", "unknown", "https"])
def test_one_socket_may_serve_both_families(name: str) -> None:
    found = assign([at("::", 443, name, dual=True)], [HTTPS])
    assert whose(found) == [("[::]:443", "https", ["0.0.0.0:443", "[::]:443"])]
    assert found.problems == []
    (note,) = found.notes
    assert "BindIPv6Only=ipv6-only" in note


def test_an_own_socket_for_ipv4_goes_first() -> None:
    found = assign([at("::", 443, dual=True), at("0.0.0.0", 443)], [HTTPS])
    assert sorted(whose(found)) == [
        ("0.0.0.0:443", "https", ["0.0.0.0:443"]),
        ("[::]:443", "https", ["[::]:443"]),
    ]


def test_what_has_no_socket_is_bound_by_relay_itself_and_that_is_said() -> None:
    found = assign([at("0.0.0.0", 443), at("::", 443), at("0.0.0.0", 8883)], [HTTPS, MQTT])
    assert found.problems == []
    (note,) = found.notes
    assert note.startswith("listeners.mqtt.bind: [::]:8883: no ListenStream= of systemd's; relay binds it itself")


def test_a_socket_with_a_listeners_name_takes_the_place_of_what_the_settings_say() -> None:
    found = assign([at("10.0.0.4", 9883, "mqtt"), at("::", 9883, "mqtt")], [MQTT])
    assert whose(found) == [("10.0.0.4:9883", "mqtt", ["0.0.0.0:8883"]), ("[::]:9883", "mqtt", ["[::]:8883"])]
    assert found.problems == []
    assert found.notes == [
        'listeners.mqtt.bind: not 0.0.0.0:8883: systemd\'s socket "mqtt" at 10.0.0.4:9883 takes its place',
        'listeners.mqtt.bind: not [::]:8883: systemd\'s socket "mqtt" at [::]:9883 takes its place',
    ]


def test_one_socket_with_a_listeners_name_may_take_the_place_of_both_families() -> None:
    found = assign([at("::", 9883, "mqtt", dual=True)], [MQTT])
    assert [(one.listener, sorted(one.binds)) for one in found.assigned] == [("mqtt", ["0.0.0.0:8883", "[::]:8883"])]


def test_a_listener_that_leaves_its_port_open_takes_its_socket_without_a_word() -> None:
    found = assign([at("127.0.0.1", 40001, "main")], [("main", ["127.0.0.1:0"])])
    assert whose(found) == [("127.0.0.1:40001", "main", ["127.0.0.1:0"])]
    assert (found.problems, found.notes) == ([], [])


@pytest.mark.parametrize(
    ("socket_", "words"),
    [
        (at("0.0.0.0", 80), ['"relay.socket" at 0.0.0.0:80 is no listener', "ListenStream=", "FileDescriptorName="]),
        (at("0.0.0.0", 80, "mqqt"), ['"mqqt" at 0.0.0.0:80 is no listener', "there are https, mqtt"]),
        (at("0.0.0.0", 443, "mqtt"), ["has the address of listeners.https.bind", "FileDescriptorName="]),
        (at("127.0.0.1", 443), ["at 127.0.0.1:443 is no listener"]),
    ],
)
def test_a_socket_that_is_nobodys_is_a_mistake(socket_: Inherited, words: list[str]) -> None:
    found = assign([socket_], [HTTPS, MQTT])
    assert found.assigned == []
    (problem,) = found.problems
    assert all(word in problem for word in words), problem


def test_more_sockets_of_a_name_than_addresses_are_a_mistake() -> None:
    found = assign([at("0.0.0.0", 8883, "mqtt"), at("0.0.0.0", 9883, "mqtt")], [("mqtt", ["0.0.0.0:8883"])])
    (problem,) = found.problems
    assert "0.0.0.0:9883" in problem
    assert "listeners.mqtt.bind" in problem


def test_one_socket_cannot_serve_two_listeners() -> None:
    found = assign([at("::", 443, dual=True)], [("four", ["0.0.0.0:443"]), ("six", ["[::]:443"])])
    (problem,) = found.problems
    assert "listeners.four.bind and listeners.six.bind" in problem
    assert "BindIPv6Only=ipv6-only" in problem


# --- what relay starts with -----------------------------------------------------------------------------------------


def test_a_socket_becomes_every_workers_with_the_options_of_the_settings(stack: ExitStack) -> None:
    taken = handed(stack, tcp(stack))
    found = assign(taken.sockets, [("main", ["127.0.0.1:0"])])
    assert found.problems  # no name, and no address of its own
    taken = handed(stack, tcp(stack), names="main")
    ((place, made),) = bindings(assign(taken.sockets, [("main", ["127.0.0.1:0"])]).assigned, 3, TcpOptions()).items()
    sock = made.inherited
    assert sock is not None
    assert (place, made.asked, made.address) == ("main 127.0.0.1:0", "main 127.0.0.1:0", taken.sockets[0].address)
    assert made.sockets == [sock] * 3
    assert not sock.getblocking()
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60
    assert not sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    sock.close()


def test_one_that_serves_two_addresses_is_one(stack: ExitStack) -> None:
    taken = handed(stack, tcp(stack, "::", dual=True))
    port = taken.sockets[0].port
    found = assign(taken.sockets, [("main", [f"0.0.0.0:{port}", f"[::]:{port}"])])
    made = bindings(found.assigned, 1, TcpOptions())
    assert list(made) == [f"0.0.0.0:{port}", f"[::]:{port}"]
    first, second = made.values()
    assert first is second
    first.sockets[0].close()


def test_the_first_descriptor_is_the_one_of_the_protocol() -> None:
    assert socket_activation.FIRST == 3
