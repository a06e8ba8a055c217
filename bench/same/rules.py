"""What must be the same on every way that a script is played, and the known deviations of HAProxy that are allowed.

Everything is compared that TCP lets an end know for certain (`steps.Sure`): count and hash of the bytes, bytes that
came after this end's half-close, FIN, reset. Where the count is a matter of chance, the bytes that arrived must be the
start of those that were sent, and a FIN must come behind all of them. A FIN that was not sent is always wrong: it makes
a truncated stream look complete.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from bench.same.end import Seen
from bench.same.script import CLIENT, UPSTREAM, Script
from bench.same.steps import Sure

TOLD = 5.0  # seconds in which a reset must be passed on: relay checks a silent connection every second or two
HAPROXY_TELLS = 1.0  # seconds after which HAProxy is taken to swallow a reset, in the cases known for that


class Verdict(NamedTuple):
    """The verdict on one end: its faults, and the reason if a difference is allowed."""

    wrong: tuple[str, ...] = ()
    allowed: str = ""


def judge(script: Script, side: str, seen: Seen, direct: Seen | None, *, haproxy: bool = False) -> Verdict:
    """Judge what one end saw. `direct` is what the same end saw without a proxy; None if `seen` is that itself."""
    if direct is not None and script.hasty and side == UPSTREAM and not seen.connected and not seen.trouble:
        # A proxy notices the client's reset at its next check. Before its own connect there is no upstream that
        # could get it. An upstream that was dialled must get the reset.
        return Verdict(allowed="the client reset at once, and the upstream was not dialled")
    wrong = [*faults(script, side, seen)]
    if direct is not None:
        expected, found = comparable(script, side, direct), comparable(script, side, seen)
        wrong += [
            f"{name}: {found[name]}, directly {value}" for name, value in expected.items() if found[name] != value
        ]
    if wrong and haproxy and (name := haproxy_loses_reset(script, side, seen)):
        # Everything else that the end saw is judged as usual.
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
    """Seconds that an end waits for a reset."""
    return HAPROXY_TELLS if haproxy and haproxy_tells_nobody(script, side) else TOLD


def faults(script: Script, side: str, seen: Seen) -> list[str]:
    """What is wrong by itself, also without a proxy."""
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
    """The values that must be the same on every way."""
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
    """The name of HAProxy's known deviation for a reset on its way to `side`, or "". Seen with 2.6.12.

    - Where the upstream resets, the client gets a FIN, whatever went before: HAProxy closes that side in good order.
    - Where the client resets, the upstream gets an RST most of the time, and a FIN if the upstream has half-closed
      before, or if the reset came in together with bytes.
    - A reset behind a FIN from the same side is not passed on: HAProxy has passed the FIN on, and closes. An end that
      sends after that gets a reset from the kernel; a silent end does not.
    - A reset is not noticed while the other side takes no bytes, because HAProxy does not read then.
    """
    other = script.other_side(side)
    if script.reset_by not in (other, "both"):
        return ""
    whole = script.other(side).whole
    if seen.fin and seen.received != whole:
        return f"the {other} reset, and the {side} got a FIN"
    return haproxy_tells_nobody(script, side) if seen.untold else ""


def haproxy_tells_nobody(script: Script, side: str) -> str:
    """The name of the deviation by which HAProxy passes a reset to `side` on to nobody, or ""."""
    other = script.other_side(side)
    if script.other(side).whole is not None:
        return f"the {other} sent a FIN and then reset, and the {side} got the FIN only"
    if script.part(side).deaf:
        return f"the {other} reset, and the {side} was not told while it did not read"
    return ""
