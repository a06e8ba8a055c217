"""The bodies of two extensions of a TLS hello, found by the layouts of earlier hellos (RFC 8446 section 4.2).

The hellos of one kind of device to one name have the same extensions of the same lengths in the same order. A walk from
one extension to the next finds that layout once; later a single unpack of all types and lengths confirms it, at a
fraction of the cost. The result is exact: the first extension's type and length have a fixed place, and if they are as
in the layout, so is the place of the second, and so on to the end. A block that fits no layout is walked.
"""

from __future__ import annotations

import struct

SERVER_NAME, ALPN = 0, 16
# Bounds of the cache, which keep it below a megabyte whatever clients send.
SIZES = 64  # block sizes whose layouts are kept; one more clears the cache
WAYS = 4  # layouts kept for each block size
MOST = 32  # extensions of a layout that is kept; clients have a dozen or two

MOST_BYTES = (1 << 16) - 1  # of a block: RFC 8446 section 4.1.2

_EXTENSION = struct.Struct("!HH")  # type, length

Bodies = tuple[bytes | None, bytes | None]  # of server_name and ALPN


class Truncated(ValueError):
    """A block ends within an extension."""


class Twice(ValueError):
    """A block has the same extension twice."""


class TooMany(ValueError):
    """A block has more extensions than are walked."""


class _Layout:
    """The types and lengths of a block's extensions in order, and the places of the two bodies."""

    __slots__ = ("alpn", "headers", "pattern", "server_name")

    def __init__(self, headers: list[int], server_name: slice | None, alpn: slice | None) -> None:
        self.headers = tuple(headers)  # type, length, type, length, …
        self.server_name = server_name
        self.alpn = alpn
        self.pattern: struct.Struct | None = None  # unpacks the headers of a block; made when the layout comes again

    def compile(self) -> None:
        """Make the pattern, so that later blocks are compared with this layout."""
        self.pattern = struct.Struct("!" + "".join([f"HH{length}x" for length in self.headers[1::2]]))

    def bodies(self, block: bytes) -> Bodies:
        """The two bodies of a block that has this layout."""
        server_name, alpn = self.server_name, self.alpn
        return (
            None if server_name is None else block[server_name],
            None if alpn is None else block[alpn],
        )


class Layouts:
    """A cache of the layouts found last, by the size of the block in bytes.

    A block of more than `most` extensions is not walked to its end, since that takes time for each of them.
    """

    def __init__(self, most: int = MOST_BYTES // _EXTENSION.size) -> None:
        self._most = most
        self._of_size: dict[int, list[_Layout]] = {}

    def find(self, block: bytes) -> Bodies:
        """The bodies of server_name and ALPN, each None if absent. Raises Truncated, Twice or TooMany."""
        for layout in self._of_size.get(len(block), ()):
            pattern = layout.pattern
            if pattern is not None and pattern.unpack(block) == layout.headers:
                return layout.bodies(block)
        layout = self._walk(block)
        if len(layout.headers) <= 2 * MOST:
            self._keep(len(block), layout)
        return layout.bodies(block)

    def _walk(self, block: bytes) -> _Layout:
        """The layout of a block, extension by extension."""
        size, at = len(block), 0
        headers: list[int] = []
        server_name = alpn = None
        unpack = _EXTENSION.unpack_from
        try:
            for _ in range(self._most):
                if at >= size:
                    break
                kind, length = unpack(block, at)
                at += _EXTENSION.size + length
                headers += kind, length
                if kind == SERVER_NAME:
                    server_name = slice(at - length, at)
                elif kind == ALPN:
                    alpn = slice(at - length, at)
        except struct.error:
            raise Truncated from None
        if at < size:
            raise TooMany
        if at != size:
            raise Truncated
        kinds = headers[::2]
        if len(set(kinds)) != len(kinds):
            raise Twice
        return _Layout(headers, server_name, alpn)

    def _keep(self, size: int, found: _Layout) -> None:
        """Add a layout to the cache, or compile it if it is there already."""
        layouts = self._of_size.get(size)
        if layouts is None:
            if len(self._of_size) >= SIZES:
                self._of_size.clear()
            layouts = self._of_size[size] = []
        for layout in layouts:
            if layout.headers == found.headers:
                layout.compile()
                return
        layouts.insert(0, found)
        del layouts[WAYS:]
