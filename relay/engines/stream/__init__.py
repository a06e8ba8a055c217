"""The `stream` engine: uvloop for the control side, one edge-triggered epoll inside it for the clients' sockets.

uvloop waits in its own epoll. One of the descriptors in it is a second epoll, which holds every client and upstream
socket. When the second epoll becomes readable, the engine takes a batch of events from it and moves bytes with
recv_into and send on the sockets themselves. uvloop's own transports were tried first and given up: they take twice the
memory per connection, read 256 KB at a time, do not see a reset while reading is paused, accept and drop connections
when descriptors run out, cannot close with a reset, and crashed under load. docs/performance.md has the figures and the
command that measures them.

`engine` handles events and opens and closes sockets, `pump` moves bytes, `dialer` opens upstream sockets, and `link`
has the records that they share.
"""

from __future__ import annotations

from relay.engines.stream.engine import StreamEngine

__all__ = ["StreamEngine"]
