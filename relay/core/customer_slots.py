"""The customers' slots: which place in the tables (`customers`), limits, rates and counters belongs to which name.

A customer keeps its slot as long as the process lives, over reloads that change it, remove it, or bring it back, so
that connections and counters that name the slot stay true. Only when no unused slot is left does a new name get the
slot of a removed customer: the one removed longest ago that is idle, and whose counters are then set to zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from relay.core.customers import SLOTS


class NoSlot(Exception):
    """No slot is left for a customer: all belong to others, or to removed ones that are not idle yet."""


@dataclass(frozen=True, slots=True)
class CustomerSlots:
    """The slots by name. Immutable: `change` returns the slots after a reload, which may still be given up.

    `removed` has the names that the settings had before, those removed longest ago first.
    """

    present: Mapping[str, int] = field(default_factory=dict)
    removed: Mapping[str, int] = field(default_factory=dict)
    used: int = 0  # slots that were ever given to a name: those below this number
    most: int = SLOTS

    def change(self, names: Iterable[str], idle: Callable[[int], bool]) -> Change:
        """The slots for these names; each name once.

        `idle(slot)` says whether the slot of a customer whom an earlier reload removed may be given to another: no
        connection has it, and every worker knows that the customer is gone. Raises NoSlot.
        """
        wanted = list(names)
        known = {**self.removed, **self.present}
        present = {name: known[name] for name in wanted if name in known}
        removed = {name: slot for name, slot in known.items() if name not in present}
        used, reused = self.used, []
        free = (name for name in self.removed if name in removed and idle(removed[name]))
        for name in wanted:
            if name in present:
                continue
            if used < self.most:
                present[name], used = used, used + 1
                continue
            former = next(free, None)
            if former is None:
                raise NoSlot
            present[name] = removed.pop(former)
            reused.append(present[name])
        return Change(CustomerSlots(present, removed, used, self.most), tuple(reused))

    def names(self) -> Iterator[tuple[str, int]]:
        """Every name with its slot: the present ones, then the removed ones."""
        yield from self.present.items()
        yield from self.removed.items()


@dataclass(frozen=True, slots=True)
class Change:
    """The slots after a reload. `reused` are those that went from one name to another: their counters begin anew."""

    slots: CustomerSlots
    reused: tuple[int, ...]
