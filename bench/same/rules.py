"""What must be the same whichever way a script was played, and what is known of HAProxy and let pass, by name.

Everything is compared that TCP lets an end know for certain (`steps.Sure` says what that is): count and hash of
the bytes, those that came after the own half-close, FIN, reset. Where the count is chance, what arrived must be the
beginning of what was sent, and a FIN must come behind all of it. A FIN where none was sent is never right: it makes a
stream that was cut look complete.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from bench.same.end import Seen
from bench.same.script import CLIENT, UPSTREAM, Script
from bench.same.steps import Sure

TOLD = 5.0  # seconds in which a reset must be told: relay looks at a silent connection every second or two
HAPROXY_TELLS = 1.0  # seconds after which HAProxy is taken to tell nobody, where it is known to do so


class Verdict(NamedTuple):
    """One end's: what is wrong, and what is not the same for a reason that is known."""

    wrong: tuple[str, ...] = ()
    allowed: str = ""


def judge(script: Script, side: str, seen: Seen, direct: Seen | None, *, haproxy: bool = False) -> Verdict:
    """`direct` is what the same end saw without a proxy; None if that is what is judged."""
    if direct is not None and script.hasty and side == UPSTREAM and not seen.connected and not seen.trouble:
        # A proxy learns of the client's reset when it looks; if that is before its own connect, nobody is there to be
        # told. An upstream that was dialled must be told all the same.
        return Verdict(allowed="the client reset at once, and the upstream was not dialled")
    wrong = [*faults(script, side, seen)]
    if direct is not None:
        expected, found = comparable(script, side, direct), comparable(script, side, seen)
        wrong += [
            f"{name}: {found[name]}, directly {value}" for name, value in expected.items() if found[name] != value
        ]
    if wrong and haproxy and (name := haproxy_loses_reset(script, side, seen)):
        # All else that the end saw is judged as ever.
        told = replace(
            seen, reset=True, untold=False, told_after=0.0, fin=seen.fin and seen.received == script.other(side).whole
        )
        if not judge(script, side, told, direct).wrong:
            return Verdict(allowed=name)
    if wrong and haproxy and side == UPSTREAM and script.first == CLIENT and script.other(side).whole == 0:
        # Seen with 2.6.12 on a busy machine: a client that ends before HAProxy has dialled ends the dial.
        told = replace(seen, reset=False, fin=True, told_after=0.0)
        if seen.reset and not judge(script, side, told, direct).wrong:
            return Verdict(allowed="the client said nothing and ended, and the upstream was reset")
    return Verdict(tuple(wrong))


def patience(script: Script, side: str, *, haproxy: bool = False) -> float:
    """Seconds that an end waits to be told of a reset."""
    return HAPROXY_TELLS if haproxy and haproxy_tells_nobody(script, side) else TOLD


def faults(script: Script, side: str, seen: Seen) -> list[str]:
    """What would be wrong by itself, also without a proxy."""
    whole = script.other(side).whole
    wrong = []
    if not seen.connected:
        wrong.append("never connected")
    if seen.altered:
        wrong.append("other bytes than were sent")
    if seen.fin and whole is None:
        wrong.append(f"FIN after {seen.received} bytes, where none was sent")
    elif seen.fin and seen.received != whole:
        wrong.append(f"FIN after {seen.received} of {whole} bytes")
    if seen.untold:
        wrong.append("was not told of a reset in time")
    if seen.told_after > TOLD:
        wrong.append(f"was told of a reset after {seen.told_after:.1f} s")
    if script.part(side).sure is Sure.WHOLE and seen.owed and not (seen.fin and seen.received == whole):
        wrong.append(f"{seen.received} of {whole} bytes" + ("" if seen.fin else ", and no FIN"))
    if seen.trouble:
        wrong.append(seen.trouble)
    return wrong


def comparable(script: Script, side: str, seen: Seen) -> dict[str, object]:
    """What must be the same each time."""
    part = script.part(side)
    values: dict[str, object] = {}
    if part.sure not in (Sure.BYTES, Sure.WHOLE):
        values["told of a reset"] = seen.reset
    if part.sure is Sure.ALL:
        values |= {"bytes": seen.received, "hash": seen.digest, "FIN": seen.fin}
    if part.answered:
        values["bytes after its own FIN"] = seen.after_own_end
    return values


def haproxy_loses_reset(script: Script, side: str, seen: Seen) -> str:
    """The name of what HAProxy does to a reset on its way to `side`, if this is it. Seen with 2.6.12.

    - Where the upstream resets, the client gets a FIN, whatever went before: HAProxy closes that side in good order.
    - Where the client resets, the upstream gets an RST most of the time, and a FIN if it has half-closed before, or if
      the reset came in together with bytes.
    - A reset behind a FIN from the same side is passed on to nobody: HAProxy has passed the FIN on, and closes. Whoever
      sends after that is told by the kernel, whoever is silent is not.
    - A reset is not noticed while the other side takes nothing: nothing is read either.
    """
    other = script.other_side(side)
    if script.reset_by not in (other, "both"):
        return ""
    whole = script.other(side).whole
    if seen.fin and seen.received != whole:
        return f"the {other} reset, and the {side} got a FIN"
    return haproxy_tells_nobody(script, side) if seen.untold else ""


def haproxy_tells_nobody(script: Script, side: str) -> str:
    """The same, of a reset that the end may wait for in vain."""
    other = script.other_side(side)
    if script.other(side).whole is not None:
        return f"the {other} sent a FIN and then reset, and the {side} got the FIN only"
    if script.part(side).deaf:
        return f"the {other} reset, and the {side} was not told while it did not read"
    return ""
