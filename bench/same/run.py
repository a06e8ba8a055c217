"""Plays each script on all ways at the same time, and judges what the ends saw."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import sys
import time
from collections.abc import Iterator

from bench.same.play import Play
from bench.same.rules import judge
from bench.same.script import CLIENT, UPSTREAM, Script
from bench.same.signals import Errors
from bench.same.ways import DIRECT, HAPROXY, Way

MOST_PRINTED = 20  # differences; the others are counted


class Run:
    """Plays scripts in all lanes until the time or the seeds are used up."""

    def __init__(self, options: argparse.Namespace, ways: list[Way]) -> None:
        self._options = options
        self._ways = ways
        self._until = time.monotonic() + options.minutes * 60 if not options.count else float("inf")
        numbers: Iterator[int] = itertools.count(options.seed)
        self._seeds = itertools.islice(numbers, options.count) if options.count else numbers
        self._printed = 0
        self.scripts = 0

    async def run(self) -> None:
        """Play, and print the progress now and then."""
        start = last = time.monotonic()
        errors = Errors()
        lanes = [asyncio.create_task(self._lane(number, errors)) for number in range(self._options.lanes)]
        terminal = sys.stdout.isatty()
        while not all(task.done() for task in lanes):
            over, _ = await asyncio.wait(lanes, timeout=2)
            for task in over:
                task.result()  # a lane that failed ends the run
            now = time.monotonic()
            if now - start > self._options.minutes * 6:
                for way in self._ways:
                    if way.relay and not way.warm:
                        way.warm = await asyncio.to_thread(way.watch.processes)
            if terminal or now - last >= 30:
                last = now
                different = sum(way.tally.different.total() for way in self._ways)
                line = (
                    f"{now - start:5.0f} s: {self.scripts:,} scripts, {len(self._ways)} ways, {different} differences"
                )
                print(f"\r{line}" if terminal else line, end="" if terminal else "\n", flush=True)
        errors.close()
        print()

    async def _lane(self, number: int, errors: Errors) -> None:
        for seed in self._seeds:
            if time.monotonic() >= self._until:
                return
            script = Script.of(seed)
            plays = {
                way.name: Play(
                    script,
                    way.ports[number],
                    way.listeners[number],
                    errors,
                    haproxy=way.name == HAPROXY,
                    verbose=self._options.verbose,
                )
                for way in self._ways
            }
            await asyncio.gather(*(play.run() for play in plays.values()))
            self.scripts += 1
            for way in self._ways:
                self._judge(script, way, plays)

    def _judge(self, script: Script, way: Way, plays: dict[str, Play]) -> None:
        play, tally, kind = plays[way.name], way.tally, f"{script.kind}, {script.first}"
        if self._options.verbose:
            ends = [f"{side}: {play.seen(side)}" for side in (CLIENT, UPSTREAM)]
            print("\n".join(("", way.name, *play.notes, *ends)))
        tally.played[kind] += 1
        tally.resets[script.reset_by] += 1
        found = []
        for side in (CLIENT, UPSTREAM):
            seen = play.seen(side)
            tally.bytes += seen.received
            tally.slowest = max(tally.slowest, (seen.told_after, f"--seed {script.seed}: {kind}"))
            direct = None if way.name == DIRECT else plays[DIRECT].seen(side)
            verdict = judge(script, side, seen, direct, haproxy=way.name == HAPROXY)
            if verdict.allowed:
                tally.allowed[verdict.allowed] += 1
            if verdict.wrong:
                found.append(
                    f"  {side}: {'; '.join(verdict.wrong)}\n    {way.name}: {seen}\n    direct: {direct or seen}"
                )
        if play.stray:
            found.append(f"  {play.stray} connections came to the upstream that belong to no script")
        if found:
            tally.different[kind] += 1
            self._printed += 1
            if self._printed <= MOST_PRINTED:
                print(f"\nDIFFERENT --seed {script.seed}, {way.name}: {kind}\n" + "\n".join(found), flush=True)
