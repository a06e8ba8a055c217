"""The `stream` engine: uvloop for the control side, one edge-triggered epoll inside it for the clients' sockets.

uvloop waits in its own epoll; one descriptor in there is a second epoll that holds every client and upstream socket.
When that becomes readable, the engine takes a batch of events from it and moves bytes with recv_into and send on the
sockets themselves. uvloop's own transports were tried first and given up: they take twice the memory per connection,
read 256 KB at a time, do not see a reset while reading is paused, accept and drop connections when descriptors run out,
cannot close with a reset, and crashed under load. The figures and the command that measures them are in
docs/performance.md.

`engine` is the event loop and the life of a connection, `pump` the way of its bytes, `link` the records that both
share.
"""

from __future__ import annotations

from relay.engines.stream.engine import StreamEngine

__all__ = ["StreamEngine"]
