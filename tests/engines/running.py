"""A running engine, ticking in a thread and event loop of its own, so that a test's peers may block.

All calls into the engine go through its loop. A test waits for a state that it observes, with a deadline; every event
in the engine's thread, and every tick, wakes the waiting test.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any, TypeVar

from relay.address import Address
from relay.engines.contract import Accepted, Action, Event, Handler, TcpOptions, Timeouts
from tests.engines.kinds import Kind
from tests.engines.script import Script, ScriptedHandler
from tests.support.programs import PATIENCE

TICK = 0.02  # seconds
DEADLINE = 20.0 * PATIENCE  # seconds that anything may take on a busy machine before the test gives up

T = TypeVar("T")


class RunningEngine:
    """Starts with the constructor; `close` ends the engine, its loop and the thread."""

    def __init__(
        self, kind: Kind, timeouts: Timeouts, tcp: TcpOptions, report_source: bool, held_limit: int = 0
    ) -> None:
        self.kind = kind
        self.handlers: dict[int, ScriptedHandler] = {}  # by the client's port
        self.errors: list[dict[str, Any]] = []  # exceptions that reached the event loop: there must be none
        self.ticks = 0
        self._ticking = False
        self.held_peak = 0  # bytes, as seen at ticks
        self.changed = threading.Condition(threading.RLock())
        self._options = (timeouts, tcp, report_source, held_limit)
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"engine {kind.name}", daemon=True)
        self._thread.start()
        if not self._started.wait(DEADLINE):
            raise AssertionError("the engine's thread did not start")

    def _run(self) -> None:
        timeouts, tcp, report_source, held_limit = self._options
        self.loop: asyncio.AbstractEventLoop = self.kind.make_loop()
        self.loop.set_exception_handler(lambda _loop, context: self.errors.append(context))
        self.engine = self.kind.make_engine(
            self.loop, timeouts, tcp, report_source=report_source, held_limit=held_limit
        )
        self.closed = False
        self._tick()
        self.loop.call_soon(self._started.set)
        try:
            self.loop.run_forever()
        finally:
            self.loop.close()

    def _tick(self) -> None:
        if self.closed:
            return
        self.loop.call_later(TICK, self._tick)
        if not self._ticking:
            self._tick_engine()
        with self.changed:
            self.ticks += 1
            self.held_peak = max(self.held_peak, self.engine.held)
            self.changed.notify_all()

    def _tick_engine(self) -> None:
        self._ticking = not self.closed and self.engine.tick(monotonic())
        if self._ticking:
            self.loop.call_soon(self._tick_engine)

    # --- calls from the test --------------------------------------------------------------------------------------

    def call(self, function: Callable[..., T], *args: object) -> T:
        """Call a function in the loop's thread and return what it returns. Raises what it raises."""
        results: list[T] = []
        errors: list[BaseException] = []
        done = threading.Event()

        def run() -> None:
            try:
                results.append(function(*args))
            except BaseException as error:  # noqa: BLE001  (raised again in the caller's thread)
                errors.append(error)
            done.set()

        self.loop.call_soon_threadsafe(run)
        if not done.wait(DEADLINE):
            raise AssertionError(f"the engine's loop did not answer within {DEADLINE} s")
        if errors:
            raise errors[0]
        return results[0]

    @contextlib.contextmanager
    def held_still(self) -> Iterator[None]:
        """Stop the loop for a while, so that what the peers do meanwhile reaches the engine all at once."""
        stopped, go_on = threading.Event(), threading.Event()

        def stand_still() -> None:
            stopped.set()
            go_on.wait(DEADLINE)

        self.loop.call_soon_threadsafe(stand_still)
        assert stopped.wait(DEADLINE)
        try:
            yield
        finally:
            go_on.set()

    def wait(self, state: Callable[[], object], what: str) -> None:
        """Wait until `state()` is true."""
        with self.changed:
            if not self.changed.wait_for(state, DEADLINE):
                raise AssertionError(f"not within {DEADLINE} s: {what}; {self._describe()}")

    def wait_ticks(self, count: int) -> None:
        """Wait for `count` more ticks of the engine."""
        end = self.ticks + count
        self.wait(lambda: self.ticks >= end, f"{count} ticks")

    def wait_stable(self, value: Callable[[], object], ticks: int = 8) -> None:
        """Wait until `value()` stays the same over some ticks: the sender is blocked."""
        deadline = monotonic() + DEADLINE
        before, after = object(), value()
        while before != after:
            if monotonic() > deadline:
                raise AssertionError(f"still changing after {DEADLINE} s: {after}")
            before = after
            self.wait_ticks(ticks)
            after = value()

    def wait_gone(self) -> None:
        """Wait until every connection is closed, with nothing held for any of them."""
        self.wait(lambda: self.engine.connections == 0, "no connections")
        assert self.call(lambda: self.engine.held) == 0  # between calls: within one, closing connections still count

    def listen(self, sock: socket.socket, script: Script, *, shared: bool = False) -> None:
        """Accept on a listening socket, with a scripted handler for each connection."""
        self.listen_with(sock, self.accepting(script), shared=shared)

    def accepting(self, script: Script) -> Accepted:
        """A callback for `Engine.listen` that gives each accepted connection a handler with the script."""

        def accepted(address: Address) -> tuple[Handler, Action]:
            handler = ScriptedHandler(script, address, self.changed)
            with self.changed:
                self.handlers[address[1]] = handler
                self.changed.notify_all()
            return handler, script.first

        return accepted

    def listen_with(self, sock: socket.socket, accepted: Accepted, *, shared: bool = False) -> None:
        """Accept on a listening socket, with any callback."""
        self.call(lambda: self.engine.listen(sock, accepted, shared=shared))

    def close_gracefully(self, count: int, event: Event = Event.DRAINED) -> int:
        """Begin a graceful close of the `count` oldest connections."""
        return self.call(self.engine.close_gracefully, count, event)

    def perform(self, handler: ScriptedHandler, action: Action) -> None:
        """Carry out an action after Wait."""
        self.call(self.engine.perform, handler, action)

    def handler_of(self, client: socket.socket) -> ScriptedHandler:
        """The handler of a client's connection; waits for the accept."""
        port = client.getsockname()[1]
        self.wait(lambda: port in self.handlers, f"the connection from port {port} is accepted")
        return self.handlers[port]

    def ended(self, handler: ScriptedHandler) -> tuple[object, ...]:
        """Wait for the end of a connection; returns the one event that ended it, and its value if it has one."""
        self.wait(lambda: handler.endings and handler.link is None, "the connection has ended")
        (ending,) = handler.endings
        event, value = handler.events[-1]
        assert event is ending, "nothing comes after the end"
        return (event,) if value is None else (event, value)

    def close_engine(self) -> None:
        """Close the engine; the loop goes on."""
        self.closed = True
        self.call(self.engine.close)

    def wait_turns(self, count: int = 3) -> None:
        """Let the loop run `count` times, so that scheduled callbacks have run."""
        for _ in range(count):
            self.call(lambda: None)

    def close(self) -> None:
        """Close the engine if it is not yet, end its loop and its thread."""
        if not self._thread.is_alive():
            return
        try:
            if not self.closed:
                self.close_engine()
        finally:
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join(DEADLINE)
            assert not self._thread.is_alive(), "the engine's loop did not stop"

    def _describe(self) -> str:
        engine = self.engine
        events = [handler.kinds for handler in list(self.handlers.values())[:8]]
        return f"connections={engine.connections} held={engine.held} events={events} errors={self.errors}"
