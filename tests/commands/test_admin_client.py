"""Asking a relay's admin port: who is believed, how long one waits, and where it is."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from relay.commands.admin_client import DEFAULT, NoAdminPort, Refused, Unreachable, at_bind, fetch, post, request
from relay.settings.model import Settings
from tests.supervisor.admin.admin_ports import Reply, admin_port


@contextmanager
def talking(*sent: bytes) -> Iterator[str]:
    """A server that sends these to whoever connects, and then nothing, with the connection open."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        over = threading.Event()

        def serve() -> None:
            client, _ = server.accept()
            with client:
                for data in sent:
                    client.sendall(data)
                over.wait(20)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        over.set()
        thread.join()


def test_a_relay_is_asked_and_believed() -> None:
    with admin_port(Reply(body={"state": "ready"})) as port:
        assert dict(fetch(port.url)) == dict(fetch(port.url + "/")) == {"state": "ready"}
        answer = request(port.url, "/readyz")
        assert (answer.url, answer.version, answer.status) == (port.url + "/readyz", "9.8.7", 200)
        assert port.asked == ["GET /status", "GET /status", "GET /readyz"]


def test_what_is_in_front_of_it_may_have_put_it_below_a_path() -> None:
    with admin_port(Reply(body={})) as port:
        fetch(port.url + "/relays/1/")
        assert port.asked == ["GET /relays/1/status"]


@pytest.mark.parametrize("server", ["", "Python/3.11 aiohttp/3.14.5", "nginx", "relay", "relayd/1", "node_exporter"])
def test_another_program_is_not_believed_whatever_it_answers(server: str) -> None:
    with admin_port(Reply(body={"state": "ready"}, server=server)) as port:
        with pytest.raises(Unreachable, match=r"/status: what answers there is no relay .*admin\.bind") as raised:
            fetch(port.url)
        assert raised.value.gone
        with pytest.raises(Unreachable, match="is no relay"):
            post(port.url, "/reload")


@pytest.mark.parametrize("reply", [Reply(body="<html>"), Reply(body=[]), Reply(body=b"\xff"), Reply(404), Reply(500)])
def test_a_relay_that_answers_something_else(reply: Reply) -> None:
    with admin_port(reply) as port, pytest.raises(Unreachable, match=r"relay 9\.8\.7 answers status") as raised:
        fetch(port.url)
    assert not raised.value.gone


@pytest.mark.parametrize("status", [403, 409])
def test_a_relay_that_refuses_says_why(status: int) -> None:
    with admin_port(Reply(status, "two\nreasons\n")) as port, pytest.raises(Refused, match=r"^two\nreasons$"):
        post(port.url, "/reload")


@pytest.mark.parametrize("status", [200, 204, 302, 404, 500])
def test_an_order_is_only_done_if_the_answer_says_so(status: int) -> None:
    with admin_port(Reply(status)) as port, pytest.raises(Unreachable, match=f"answers status {status}"):
        post(port.url, "/drain", accepted=202)


def test_redirects_are_not_followed() -> None:
    with admin_port(Reply(body={})) as there:
        for status in (301, 302, 303, 307, 308):
            with admin_port(Reply(status, headers={"Location": there.url + "/status"})) as port:
                with pytest.raises(Unreachable, match=f"status {status}"):
                    fetch(port.url)
                with pytest.raises(Unreachable, match=f"status {status}"):
                    post(port.url, "/drain")
        assert there.asked == []


def test_no_proxy_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with admin_port(Reply(body={})) as proxy, admin_port(Reply(body={})) as port:
        for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        monkeypatch.delenv("no_proxy", raising=False)
        assert dict(fetch(port.url)) == {}
        post(port.url, "/reload")
        assert proxy.asked == []


HEAD = b"HTTP/1.1 200 OK\r\nServer: relay/1\r\n"


@pytest.mark.parametrize(
    "sent", [b"", b"HTTP/1.1 200 OK\r\nServer: re", HEAD + b"Content-Length: 9\r\n\r\n{", HEAD + b"\r\n{}"]
)
def test_an_answer_that_never_ends_is_not_waited_for(sent: bytes) -> None:
    with talking(sent) as url, pytest.raises(Unreachable, match=r"no answer within 0\.3 s|no answer in time"):
        request(url, "/status", timeout=0.3)


def test_an_answer_that_goes_on_and_on_is_not_waited_for_either() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drip() -> None:
            client, _ = server.accept()
            with client:
                client.settimeout(0.05)
                try:
                    client.sendall(HEAD)
                    while True:  # never silent for as long as the timeout
                        client.sendall(b"X-More: 1\r\n")
                        try:
                            if not client.recv(4096):
                                return
                        except TimeoutError:
                            continue
                except OSError:
                    pass

        thread = threading.Thread(target=drip)
        thread.start()
        with pytest.raises(Unreachable, match=r"no answer within|does not speak HTTP"):
            request(f"http://127.0.0.1:{server.getsockname()[1]}", "/status", timeout=0.3)
        thread.join()


def test_something_that_does_not_speak_http() -> None:
    with talking(b"220 mail.example ESMTP\r\n") as url, pytest.raises(Unreachable, match="does not speak HTTP"):
        request(url, "/status", timeout=2.0)


def test_nobody_there() -> None:
    with pytest.raises(Unreachable, match=r"no relay answers at http://127\.0\.0\.1:1/status: ") as raised:
        fetch("http://127.0.0.1:1")
    assert raised.value.gone


@pytest.mark.parametrize(
    "url",
    ["127.0.0.1:8414", "localhost:8414", "file:///etc", "", "http://", "http://[::1", "http://a:b", "http://u:p@h",
     "http://127.0.0.1:8414?x", "ftp://127.0.0.1:8414"],
)  # fmt: skip
def test_an_address_that_is_no_url(url: str) -> None:
    with pytest.raises(NoAdminPort, match=r"expected for instance http://127\.0\.0\.1:8414"):
        fetch(url)


@pytest.mark.parametrize(
    ("bind", "url"),
    [
        ("127.0.0.1:8414", "http://127.0.0.1:8414"),
        ("0.0.0.0:8414", "http://127.0.0.1:8414"),
        ("[::]:1", "http://[::1]:1"),
        ("[::1]:8414", "http://[::1]:8414"),
        ("10.0.0.4:80", "http://10.0.0.4:80"),
        ("[fd00:0::4]:80", "http://[fd00::4]:80"),
    ],
)
def test_where_an_admin_port_is(bind: str, url: str) -> None:
    assert at_bind(bind) == url


@pytest.mark.parametrize(
    ("bind", "why"),
    [
        ("", "admin.bind is empty"),
        ("127.0.0.1:0", "says in its log which port"),
        ("nonsense", 'admin.bind: "nonsense" has no port'),
        ("relay.example:80", "is not a literal address"),
    ],
)
def test_where_there_is_none(bind: str, why: str) -> None:
    with pytest.raises(NoAdminPort, match=why):
        at_bind(bind)


def test_the_default_is_that_of_the_settings() -> None:
    assert at_bind(Settings.model_fields["admin"].default.bind) == DEFAULT
