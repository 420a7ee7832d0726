"""The fault drill: breaks everything that can break under a full load, and checks every request.

    make drill                        every fault once, then a hundred reloads and restarts in a row
    make drill DRILL="--rounds 100"   faults at random
    make drill DRILL="kill disk"      those whose names contain a word

Prints a row for each round and the totals; exits 1 if any request was lost, doubled, mixed up or
cut without excuse, or if slots, connections, descriptors or memory are not back where they were.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
import traceback
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "e2e"), str(HERE.parent / "e2e" / "apps")]

from pytest import fail  # noqa: E402

from crowd import Crowd  # noqa: E402
from faults import FAULTS, Fault  # noqa: E402
from support.client import Connection  # noqa: E402
from verdict import Books, Excuses, Verdict, judge  # noqa: E402
from world import SLOTS, Spare, World, world  # noqa: E402

CLIENTS = 40
# What may be left of a fault in the gateway itself: a client that is just leaving, and what its
# allocator has not given back yet.
DESCRIPTORS = 20
MEMORY = 96 << 20

ROW = "{:<20} {:>6} {:>8} {:>6} {:>7} {:>6} {:>5} {:>5} {:>6} {:>7}  {}"
HEAD = ROW.format(
    "fault", "s", "requests", "200", "excused", "cut", "left", "conns", "fds", "MiB", "verdict"
)


@dataclass
class Round:
    fault: Fault
    seconds: float
    verdict: Verdict
    connections: int
    spare: Spare

    def row(self) -> str:
        verdict = self.verdict
        good = verdict.answers[200]
        excused = Counter(verdict.answers)
        del excused[200]
        bad = len(verdict.violations)
        return ROW.format(
            self.fault.name,
            f"{self.seconds:.0f}",
            verdict.requests,
            good,
            excused.total(),
            verdict.cut,
            verdict.left,
            self.connections,
            self.spare.descriptors,
            f"{self.spare.memory / 2**20:.0f}",
            f"{bad} VIOLATIONS" if bad else "right",
        )


async def one(
    it: World, fault: Fault, number: int, dice: random.Random, start: Spare | None
) -> Round:
    began = time.monotonic()
    prefix = f"r{number}-"
    crowd = Crowd(
        prefix, it.gateway.address, it.stub.url, dice, clients=CLIENTS, leavers=fault.leavers
    )
    wrong: list[str] = []
    with it.watching() as watch:
        crowd.start()
        try:
            await crowd.served(CLIENTS)
            await fault.inject(it, crowd, dice)
        except (Exception, fail.Exception) as error:  # noqa: BLE001
            wrong.append(f"{fault.name}: {error!r}\n{traceback.format_exc(limit=-3)}")
        await crowd.finish()
        try:
            await it.settles()
        except fail.Exception as error:
            wrong.append(f"slots: {error}")
    verdict = judge(crowd.attempts, Books.of(it.shop, it.stub, prefix), fault.excuses, it.killed)
    verdict.violations += wrong
    if watch.most > SLOTS:
        verdict.violations.append(f"{watch.most} database connections: {watch.at_the_most}")
    spare = it.spare()
    if start is not None:
        deadline = time.monotonic() + 20
        while too_much(spare, start) and time.monotonic() < deadline:
            await asyncio.sleep(0.5)
            spare = it.spare()
        if what := too_much(spare, start):
            verdict.violations.append(f"not given back: {what}")
    return Round(fault, time.monotonic() - began, verdict, watch.most, spare)


def too_much(now: Spare, start: Spare) -> str:
    if now.descriptors > start.descriptors + DESCRIPTORS:
        return f"{now.descriptors} descriptors, and {start.descriptors} at the start"
    if now.memory > start.memory + MEMORY:
        return f"{now.memory >> 20} MiB, and {start.memory >> 20} MiB at the start"
    return ""


async def nothing(it: World, crowd: Crowd, dice: random.Random) -> None:
    """So that later rounds are compared with a gateway that has worked."""
    await crowd.served(100)


def plan(words: list[str], rounds: int, dice: random.Random) -> list[Fault]:
    chosen = [it for it in FAULTS if not words or any(word in it.name for word in words)]
    if not chosen:
        sys.exit(f"no fault has one of {words} in its name: {', '.join(it.name for it in FAULTS)}")
    if rounds:
        weights = [1 if it.slow else 4 for it in chosen]
        return dice.choices(chosen, weights, k=rounds)
    signals = [it for it in FAULTS if it.name.startswith("SIG") and not it.slow]
    return chosen if words else [*chosen, *(dice.choice(signals) for _ in range(100))]


async def drill(words: list[str], rounds: int, seed: int) -> bool:
    dice = random.Random(seed)
    faults = plan(words, rounds, dice)
    done: list[Round] = []
    began = time.monotonic()
    with world() as it:
        if not it.small_disk:
            faults = [fault for fault in faults if fault.name != "full spool disk"]
            print("full spool disk is left out: only root can mount a small file system")
        print(f"seed {seed}, {len(faults)} rounds, {CLIENTS} clients, {SLOTS} slots")
        print(HEAD, flush=True)
        first = await one(it, Fault("nothing", nothing, Excuses()), 0, dice, None)
        print(first.row(), flush=True)
        start = first.spare
        for number, fault in enumerate(faults, 1):
            pid = it.gateway.pid
            done.append(await one(it, fault, number, dice, start))
            await Connection.end_all()
            if it.gateway.pid != pid:
                start = it.spare()
            print(done[-1].row(), flush=True)
            for violation in done[-1].verdict.violations[:5]:
                print(f"    {violation}", flush=True)
            if done[-1].verdict.violations:
                print(f"    (see {it.gateway.log_path})\n{it.gateway.tail()[-1500:]}", flush=True)
    return summary([first, *done], time.monotonic() - began)


def summary(rounds: list[Round], seconds: float) -> bool:
    requests = sum(it.verdict.requests for it in rounds)
    answers = sum((it.verdict.answers for it in rounds), Counter[int]())
    left = sum(it.verdict.left for it in rounds)
    cut = sum(it.verdict.cut for it in rounds)
    bad = sum(len(it.verdict.violations) for it in rounds)
    most = max(it.connections for it in rounds)
    print(
        f"\n{len(rounds)} rounds in {seconds:.0f} s: {requests} requests, answers"
        f" {dict(sorted(answers.items()))}, {cut} cut, {left} left, at most {most} database"
        f" connections of {SLOTS}, {bad} violations"
    )
    return bad == 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Break everything under load; check every request."
    )
    parser.add_argument(
        "words", nargs="*", help="faults with one of these in their names; default all"
    )
    parser.add_argument("--rounds", type=int, default=0, help="so many rounds, at random")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    arguments = parser.parse_args()
    return 0 if asyncio.run(drill(arguments.words, arguments.rounds, arguments.seed)) else 1


if __name__ == "__main__":
    sys.exit(main())
