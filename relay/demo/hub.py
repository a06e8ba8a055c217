"""The stand-in hub, a process of its own: MQTT and HTTPS over TLS on loopback, recording every message that arrives.

    python -m relay.demo.hub SERVER_PEM

Standard output is its record: first one JSON object with the ports, then one line for each message. It ends on SIGTERM
or when its standard input ends, so it never outlives the process that started it. Of what an IoT Hub does it takes
telemetry only. It checks no credentials and has no AMQP endpoint.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import ssl
import sys
from pathlib import Path

from aiohttp import web

from relay.demo import telemetry
from relay.demo.broker import MqttEndpoint, Record


class HttpsEndpoint:
    """Answers `POST /devices/{id}/messages/events` with 204, at one address."""

    def __init__(self, context: ssl.SSLContext, record: Record) -> None:
        self._context = context
        self._record = record
        app = web.Application(client_max_size=256 * 1024)  # IoT Hub's limit for one message
        app.router.add_post(telemetry.path("{device}"), self._telemetry)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> int:
        """Start to listen; returns the port, which the kernel chooses for 0. Raises OSError."""
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port, ssl_context=self._context).start()
        bound: int = self._runner.addresses[0][1]
        return bound

    async def stop(self) -> None:
        """End the connections and the listener."""
        await self._runner.cleanup()

    async def _telemetry(self, request: web.Request) -> web.Response:
        payload = await request.read()
        try:
            self._record(telemetry.arrival(telemetry.HTTPS, request.match_info["device"], payload))
        except ValueError as error:
            return web.Response(status=400, text=f"{error}\n")
        return web.Response(status=204)


def _print_line(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


async def serve(server_pem: Path) -> None:
    """Serve until SIGTERM or the end of standard input. Raises OSError if the certificate cannot be read."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(server_pem)

    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, ended.set)
    parent = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(parent), sys.stdin)

    def record(arrival: telemetry.Arrival) -> None:
        _print_line(arrival.to_line())

    mqtt, https = MqttEndpoint(context, record), HttpsEndpoint(context, record)
    ports = {telemetry.MQTT: await mqtt.start(), telemetry.HTTPS: await https.start()}
    _print_line(json.dumps(ports))

    waits = {asyncio.create_task(ended.wait()), asyncio.create_task(parent.read())}
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
    await mqtt.stop()
    await https.stop()


def main() -> int:
    """The entry point of the process; returns the exit status."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    try:
        asyncio.run(serve(Path(sys.argv[1])))
    except BrokenPipeError:
        return 1  # nobody reads the record any more
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
