"""A stand-in hub and its clients, run on the machine under test by its own Python: standard library alone.

    python3 peers.py hub ADDRESS CERTIFICATE KEY PORT...    TLS on each port, and an echo behind it
    python3 peers.py talk NAME CA PORT                      one connection through 127.0.0.1; prints what came back
    python3 peers.py hold NAME CA PORT COUNT RESULT         COUNT of them, until the other side ends each

`hold` writes RESULT when all are open, with "open", and anew when all have ended: "ended" has, for each, the seconds
after the first that ended, and how: "fin" or "reset". A certificate that is not the hub's own ends a client.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import ssl
import sys
import threading
import time


def serve(listener: socket.socket, context: ssl.SSLContext) -> None:
    """Accept for ever."""
    while True:
        client, _ = listener.accept()
        threading.Thread(target=echo, args=(client, context), daemon=True).start()


def echo(client: socket.socket, context: ssl.SSLContext) -> None:
    """Give back what comes, until it ends."""
    try:
        with context.wrap_socket(client, server_side=True) as connection:
            while data := connection.recv(65536):
                connection.sendall(data)
    except OSError:
        pass  # a probe without a hello, or a client that is gone


def hub(address: str, certificate: str, key: str, *ports: str) -> None:
    """Serve until killed."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    listeners = [socket.create_server((address, int(port)), backlog=512) for port in ports]
    for listener in listeners[1:]:
        threading.Thread(target=serve, args=(listener, context), daemon=True).start()
    serve(listeners[0], context)


def connect(name: str, ca: str, port: str) -> ssl.SSLSocket:
    """A verified connection to the hub, through whatever listens on this machine. Raises OSError."""
    context = ssl.create_default_context(cafile=ca)
    plain = socket.create_connection(("127.0.0.1", int(port)), 20)
    connection = context.wrap_socket(plain, server_hostname=name)
    connection.sendall(b"hello")
    got = b""
    while len(got) < 5:
        data = connection.recv(5 - len(got))
        if not data:
            raise ConnectionError("the hub has ended the connection")
        got += data
    if got != b"hello":
        raise ConnectionError(f"not an echo: {got!r}")
    return connection


def talk(name: str, ca: str, port: str) -> None:
    """One connection."""
    with connect(name, ca, port) as connection:
        print(json.dumps({"echo": True, "tls": connection.version(), "peer": connection.getpeercert()}))


def write(path: str, document: object) -> None:
    """A whole file, or none."""
    with open(f"{path}.new", "w", encoding="utf-8") as file:  # noqa: PTH123  # standard library of any age
        json.dump(document, file)
    os.replace(f"{path}.new", path)  # noqa: PTH105


def hold(name: str, ca: str, port: str, count: str, result: str) -> None:
    """Connections until they end."""
    opened = [connect(name, ca, port) for _ in range(int(count))]
    write(result, {"open": len(opened)})
    ended: list[tuple[float, str]] = []
    with selectors.DefaultSelector() as selector:
        for connection in opened:
            selector.register(connection, selectors.EVENT_READ)
        while len(ended) < len(opened):
            for key, _ in selector.select():
                client = key.fileobj
                assert isinstance(client, ssl.SSLSocket)
                try:
                    data, how = client.recv(65536), "fin"
                except OSError as error:
                    data, how = b"", "reset" if isinstance(error, ConnectionResetError) else "fin"
                if not data:
                    ended.append((time.monotonic(), how))
                    selector.unregister(client)
                    client.close()
    first = ended[0][0]
    write(result, {"open": len(opened), "ended": [(when - first, how) for when, how in ended]})


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    if command == "hub":
        hub(*arguments)
    elif command == "talk":
        talk(*arguments)
    elif command == "hold":
        hold(*arguments)
