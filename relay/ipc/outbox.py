"""What a worker still has to be told: the latest message of each subject."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from relay.ipc.channel import Channel, ChannelFull
from relay.ipc.messages import Checked, Message, Resolved

MOST_OWED = 10_000  # messages that are kept for a worker that does not read


class Outbox:
    """What a worker is told over its channel: everything that holds, which `everything` gives, then each change.

    One that does not read is owed the last word on each matter and no more, so it has soon caught up when it reads
    again. Should these be more than MOST_OWED, they are forgotten, and it is told everything anew, which may be more
    than the channel has room for.
    """

    def __init__(self, channel: Channel, everything: Callable[[], list[Message]]) -> None:
        self._channel = channel
        self._everything = everything
        self._owed: OrderedDict[tuple[str | int, ...], Message] = OrderedDict()  # by what it is about, the oldest first
        self._anew = True

    def fileno(self) -> int:
        return self._channel.fileno()

    def add(self, message: Message) -> None:
        """A change, to be sent."""
        if not self._anew:
            self._owed[_about(message)] = message
            if len(self._owed) > MOST_OWED:
                self.renew()

    def renew(self) -> None:
        """Everything is to be told anew."""
        self._owed.clear()
        self._anew = True

    def send(self) -> bool:
        """Send what the channel has room for; whether that was all. Raises OSError: the worker is gone."""
        if self._anew:
            self._anew = False
            self._owed.update((_about(message), message) for message in self._everything())
        while self._owed:
            about, message = self._owed.popitem(last=False)
            try:
                self._channel.send(message)
            except ChannelFull:
                self._owed[about] = message
                self._owed.move_to_end(about, last=False)
                return False
        return True


def _about(message: Message) -> tuple[str | int, ...]:
    """What a later message with the same makes void."""
    if isinstance(message, Resolved):
        return message.kind, message.host
    if isinstance(message, Checked):
        return message.kind, message.host, message.port
    return (message.kind,)
