"""Where the extensions of a TLS hello are, found by how earlier hellos looked (RFC 8446 section 4.2).

The hellos of one kind of device to one name have the same extensions of the same lengths in the same order: what a walk
from one to the next has found once, one look at all those places confirms, at a fraction of the cost. That is no guess:
the first extension's type and length are where they must be, and if they are what was found before, so is the place of
the second, and so on to the end. Whatever differs is walked.
"""

from __future__ import annotations

import struct

SERVER_NAME, ALPN = 0, 16
# What is kept, whatever clients send: less than a megabyte.
SIZES = 64  # of blocks of extensions whose layouts are kept; beyond that all are forgotten
WAYS = 4  # layouts kept for each size
MOST = 32  # extensions of a layout that is kept; clients have a dozen or two

MOST_BYTES = (1 << 16) - 1  # of a block: RFC 8446 section 4.1.2

_EXTENSION = struct.Struct("!HH")  # type, length

Bodies = tuple[bytes | None, bytes | None]  # of server_name and ALPN


class Twice(ValueError):
    """An extension is there twice."""


class TooMany(ValueError):
    """There are more extensions than are looked at."""


class _Layout:
    """The types and lengths that were found, one after another; made to look for once they have been found again."""

    __slots__ = ("alpn", "found", "look", "server_name")

    def __init__(self, found: list[int]) -> None:
        self.found = tuple(found)
        self.look: struct.Struct | None = None
        self.server_name: slice | None = None
        self.alpn: slice | None = None

    def bodies(self, block: bytes) -> Bodies:
        server_name, alpn = self.server_name, self.alpn
        return (
            None if server_name is None else block[server_name],
            None if alpn is None else block[alpn],
        )

    def learn(self) -> None:
        """Be ready to look."""
        at = 0
        lengths = self.found[1::2]
        for kind, length in zip(self.found[::2], lengths, strict=True):
            at += _EXTENSION.size + length
            if kind == SERVER_NAME:
                self.server_name = slice(at - length, at)
            elif kind == ALPN:
                self.alpn = slice(at - length, at)
        self.look = struct.Struct("!" + "".join([f"HH{length}x" for length in lengths]))


class Layouts:
    """The layouts that were found last, by the size of the block, in bytes.

    A block of more than `most` extensions is not walked to its end, which would take as long as they are many.
    """

    def __init__(self, most: int = MOST_BYTES // _EXTENSION.size) -> None:
        self._most = most
        self._of_size: dict[int, list[_Layout]] = {}

    def find(self, block: bytes) -> Bodies | None:
        """What two extensions contain, None for one that is not there; None if these are no whole extensions.

        Raises Twice or TooMany.
        """
        for layout in self._of_size.get(len(block), ()):
            look = layout.look
            if look is not None and look.unpack(block) == layout.found:
                return layout.bodies(block)
        return self._walk(block)

    def _walk(self, block: bytes) -> Bodies | None:
        size, at = len(block), 0
        found: list[int] = []
        server_name = alpn = None
        unpack = _EXTENSION.unpack_from
        try:
            for _ in range(self._most):
                if at >= size:
                    break
                kind, length = unpack(block, at)
                at += _EXTENSION.size + length
                found += kind, length
                if kind == SERVER_NAME:
                    server_name = block[at - length : at]
                elif kind == ALPN:
                    alpn = block[at - length : at]
        except struct.error:
            return None
        if at < size:
            raise TooMany
        if at != size:
            return None
        kinds = found[::2]
        if len(set(kinds)) != len(kinds):
            raise Twice
        if len(kinds) <= MOST:
            self._keep(size, found)
        return server_name, alpn

    def _keep(self, size: int, found: list[int]) -> None:
        layouts = self._of_size.get(size)
        if layouts is None:
            if len(self._of_size) >= SIZES:
                self._of_size.clear()
            layouts = self._of_size[size] = []
        for layout in layouts:
            if layout.found == tuple(found):
                layout.learn()
                return
        layouts.insert(0, _Layout(found))
        del layouts[WAYS:]
