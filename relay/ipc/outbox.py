"""The outbox of a worker: the latest unsent message of each subject."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from relay.ipc.channel import Channel, ChannelFull
from relay.ipc.messages import Checked, Message, Resolved

MAX_PENDING = 10_000  # messages that are kept for a worker that is not reading


class Outbox:
    """Sends a worker a snapshot of all that holds, which `everything` returns, and then each change.

    For a worker that is not reading, only the latest message per subject is kept, so that it catches up quickly when it
    reads again. If more than MAX_PENDING messages are pending, they are dropped, and a new snapshot is sent, in parts
    if the channel has no room for all of it.
    """

    def __init__(self, channel: Channel, everything: Callable[[], list[Message]]) -> None:
        self._channel = channel
        self._everything = everything
        self._pending: OrderedDict[tuple[str | int, ...], Message] = OrderedDict()  # by subject, oldest first
        self._snapshot_due = True

    def fileno(self) -> int:
        return self._channel.fileno()

    def add(self, message: Message) -> None:
        """Queue a change; while a snapshot is due, the snapshot will contain it."""
        if not self._snapshot_due:
            self._pending[_subject(message)] = message
            if len(self._pending) > MAX_PENDING:
                self.renew()

    def renew(self) -> None:
        """Drop the pending messages, and send a new snapshot instead."""
        self._pending.clear()
        self._snapshot_due = True

    def send(self) -> bool:
        """Send what the channel has room for; True if nothing is left. Raises OSError if the worker is gone."""
        if self._snapshot_due:
            self._snapshot_due = False
            self._pending.update((_subject(message), message) for message in self._everything())
        while self._pending:
            subject, message = self._pending.popitem(last=False)
            try:
                self._channel.send(message)
            except ChannelFull:
                self._pending[subject] = message
                self._pending.move_to_end(subject, last=False)
                return False
        return True


def _subject(message: Message) -> tuple[str | int, ...]:
    """The subject of a message: a later message with the same subject replaces it."""
    if isinstance(message, Resolved):
        return message.kind, message.host
    if isinstance(message, Checked):
        return message.kind, message.upstream, message.host, message.port
    return (message.kind,)
