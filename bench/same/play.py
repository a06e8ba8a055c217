"""One script played one way: client and upstream, connected directly or through a proxy."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time

from bench.same.end import SMALL_WINDOW, End, Seen
from bench.same.rules import patience
from bench.same.script import CLIENT, UPSTREAM, Script
from bench.same.signals import Bell, Errors
from bench.script import RESET

SECONDS = 60.0  # timeout of a script; none needs a fraction of it
DIALLED = 3.0  # seconds after which a proxy will not dial any more for a client that reset at once


class Play:
    """Both ends of one connection; `seen` returns what each end saw."""

    def __init__(
        self,
        script: Script,
        port: int,
        listener: socket.socket,
        errors: Errors,
        *,
        haproxy: bool = False,
        verbose: bool = False,
    ) -> None:
        self._script = script
        self._port = port
        self._listener = listener
        self._start = time.monotonic()
        self.notes: list[str] = []
        self.stray = 0  # connections at the upstream that belong to no script
        bell = Bell()
        ours, theirs = (patience(script, side, haproxy=haproxy) for side in (CLIENT, UPSTREAM))
        self._client = End(script.client, script.seed, ~script.seed, bell, errors, ours)
        self._upstream = End(script.upstream, ~script.seed, script.seed, bell, errors, theirs)
        self._client.other, self._upstream.other = self._upstream, self._client
        if verbose:
            self._client.note = lambda text: self._note("client", text)
            self._upstream.note = lambda text: self._note("upstream", text)

    def seen(self, side: str) -> Seen:
        return (self._client if side == CLIENT else self._upstream).seen

    async def run(self) -> None:
        """Play until both ends have finished, or SECONDS are over."""
        self._turn_away_strays()
        tasks = [asyncio.create_task(self._run_client()), asyncio.create_task(self._run_upstream())]
        _, late = await asyncio.wait(tasks, timeout=SECONDS)
        for end, task in zip((self._client, self._upstream), tasks, strict=True):
            if task in late:
                task.cancel()
                end.seen.trouble = end.seen.trouble or f"silence, at {end.doing or 'reading'}"
        results = await asyncio.gather(*tasks, return_exceptions=True)
        for end in (self._client, self._upstream):
            # A proxy that has not noticed the end gets a reset.
            await end.leave(reset=bool(late) or end.seen.untold)
        for result in results:
            if isinstance(result, Exception):
                raise result

    async def _run_client(self) -> None:
        sock = socket.socket()
        sock.setblocking(False)
        if self._script.nodelay:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._script.client.slow:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_WINDOW)  # before connect: it sets the window
        try:
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self._port))
        except OSError as error:
            sock.close()
            self._client.seen.trouble = f"connect: {error}"
            self._client.over = True
            return
        await self._client.run(sock)

    async def _run_upstream(self) -> None:
        accepting = asyncio.get_running_loop().sock_accept(self._listener)
        try:
            sock, _ = await asyncio.wait_for(accepting, DIALLED if self._script.hasty else None)
        except TimeoutError:
            return
        if self._script.nodelay:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await self._upstream.run(sock)

    def _turn_away_strays(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                sock, _ = self._listener.accept()
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                sock.close()
                self.stray += 1

    def _note(self, side: str, text: str) -> None:
        self.notes.append(f"{time.monotonic() - self._start:9.4f} {side:9s} {text}")
