"""The stand-in hub and its devices as services of deploy/docker/compose.yaml, each a container of its own.

    python -m relay.demo.compose hub FOLDER
    python -m relay.demo.compose devices FOLDER --through HOST

The hub listens on 443 and 8883, and on 5671, where it ends the connection after the TLS handshake: relay then finds all
its upstreams up, though there is no AMQP. Both parts share FOLDER: the hub makes the certificates there, and the
devices trust its authority. The devices resolve the hub's name to HOST, where relay is, as a private DNS zone does in
production. Both run until SIGTERM or SIGINT.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import signal
import socket
import ssl
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from relay.demo import certificates, telemetry
from relay.demo.broker import MqttEndpoint
from relay.demo.devices import Device, HttpsDevice, Target, trust
from relay.demo.hub import HttpsEndpoint
from relay.demo.mqtt import MqttDevice

KINDS: tuple[type[Device], ...] = (MqttDevice, MqttDevice, HttpsDevice)
RETRY = 0.5  # seconds between two looks for what another container makes


AMQP = "amqp"  # only the port: see above


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _certificates(folder: Path) -> certificates.Certificates:
    """Those of an earlier run, which the devices trust already, or new ones. Raises OSError."""
    kept = certificates.Certificates(folder / "authority.pem", folder / "server.pem")
    if not kept.server.exists():
        with tempfile.TemporaryDirectory(dir=folder) as place:
            made = certificates.create(Path(place), telemetry.HUB_NAME)
            made.authority.rename(kept.authority)  # whole: devices may be waiting for it
            made.server.rename(kept.server)
    return kept


async def _over(ended: asyncio.Event, seconds: float) -> bool:
    """Wait until `ended` or so many seconds; whether it is `ended`."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(ended.wait(), seconds)
    return ended.is_set()


async def _found(folder: Path, host: str, ended: asyncio.Event) -> tuple[ssl.SSLContext, str] | None:
    """The hub's authority and the host's address, as soon as the other containers have both; None if `ended`."""
    reported = ""
    while True:
        try:
            authority = trust(str(folder / "authority.pem"))
            found = await asyncio.get_running_loop().getaddrinfo(host, None, family=socket.AF_INET)
            return authority, str(found[0][4][0])
        except OSError as error:
            if str(error) != reported:
                reported = str(error)
                _say(json.dumps({"waiting": reported}))
        if await _over(ended, RETRY):
            return None


async def _no_amqp(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def serve(folder: Path, host: str, ports: dict[str, int], ended: asyncio.Event) -> None:
    """Make certificates and be the hub until `ended`; prints its ports and each message. Raises OSError."""
    made = _certificates(folder)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(made.server)

    def record(arrival: telemetry.Arrival) -> None:
        _say(arrival.to_line())

    mqtt, https = MqttEndpoint(context, record), HttpsEndpoint(context, record)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(mqtt.stop)
        stack.push_async_callback(https.stop)
        amqp = await asyncio.start_server(_no_amqp, host, ports[AMQP], ssl=context)
        stack.callback(amqp.close)
        bound = {
            telemetry.MQTT: await mqtt.start(host, ports[telemetry.MQTT]),
            telemetry.HTTPS: await https.start(host, ports[telemetry.HTTPS]),
            AMQP: int(amqp.sockets[0].getsockname()[1]),
        }
        _say(json.dumps(bound))
        await ended.wait()


async def send(folder: Path, through: str, ports: dict[str, int], interval: float, ended: asyncio.Event) -> None:
    """Be the devices until `ended`: each sends a message about every `interval` seconds, and prints its state then."""
    if (found := await _found(folder, through, ended)) is None:
        return
    authority, address = found
    devices = [
        kind(f"{kind.protocol}-{number}", Target(telemetry.HUB_NAME, address, ports[kind.protocol], authority))
        for number, kind in enumerate(KINDS, 1)
    ]
    tasks = [asyncio.create_task(device.run(None, interval)) for device in devices]
    while not await _over(ended, interval):
        for device in devices:
            account = device.account
            counts = {"sent": account.sent, "acknowledged": account.acknowledged, "connections": account.connections}
            _say(json.dumps({"device": device.name, "state": device.state, "error": device.error, **counts}))
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.gather(*(device.close() for device in devices))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("hub", "devices"))
    parser.add_argument("folder", type=Path, help="certificates: the hub writes them, the devices read them")
    parser.add_argument("--through", default="relay", help="devices: host that the hub's name means to them")
    parser.add_argument("--interval", type=float, default=5.0, help="devices: seconds between two messages of each")
    parser.add_argument("--host", default="0.0.0.0", help="hub: address to listen at")  # a container's own
    parser.add_argument("--mqtt", type=int, default=8883, help="port for MQTT over TLS; 0 for the hub: any free one")
    parser.add_argument("--https", type=int, default=443, help="port for HTTPS; likewise")
    parser.add_argument("--amqp", type=int, default=5671, help="port of the hub that only TLS answers; likewise")
    return parser


async def _run(options: argparse.Namespace) -> None:
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    ports = {telemetry.MQTT: options.mqtt, telemetry.HTTPS: options.https, AMQP: options.amqp}
    if options.part == "hub":
        await serve(options.folder, options.host, ports, ended)
    else:
        await send(options.folder, options.through, ports, options.interval, ended)


def main(arguments: Sequence[str] | None = None) -> int:
    """The entry point; returns the exit status."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    try:
        asyncio.run(_run(options))
    except OSError as error:
        print(f"{options.part}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
