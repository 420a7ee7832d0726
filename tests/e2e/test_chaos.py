"""Workers are killed and clients leave, all the time: nothing is lost and nothing runs twice."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from conftest import Starter
from support.checkout import JSON, purchase
from support.client import Answer, Connection, Gone
from support.gateway import Gateway
from support.postgres import Postgres, watching
from support.services import Services
from support.shop import Shop, Traces
from support.story import eventually, story

SEED = int(os.environ.get("E2E_SEED", "20260611"))
REQUESTS = 5000
AT_ONCE = 200
LATENCY = 300  # ms, of each third party
KILL_EVERY = 2.0
# The clients of a killed worker are told at once; the rest is for a busy machine.
TOLD_WITHIN = 1.5

CONFIGURATION = """
[slots]
count = 8
queue_timeout = "20s"
request_timeout = "60s"

[outbound]
allow = ["127.0.0.1"]
"""


@dataclass
class Attempt:
    """One request, what its client is up to, and what became of it."""

    reference: str
    unsafe: bool
    patience: float | None  # seconds until the client leaves; None: it stays
    rude: bool  # it leaves with a reset
    answer: Answer | None = None
    gone: str | None = None
    left: bool = False
    ended: float = 0.0

    @property
    def ends(self) -> int:
        return (self.answer is not None) + (self.gone is not None) + self.left


def attempts(dice: random.Random) -> Iterator[Attempt]:
    for number in range(REQUESTS):
        leaves = dice.random() < 0.2
        yield Attempt(
            reference=f"chaos-{number}",
            unsafe=dice.random() < 0.5,
            patience=dice.uniform(0, 2 * LATENCY / 1000) if leaves else None,
            rude=dice.random() < 0.5,
        )


class Killer:
    """Kills a worker process every two seconds."""

    def __init__(self, gateway: Gateway, dice: random.Random) -> None:
        self.gateway = gateway
        self.dice = dice
        self.kills: list[tuple[float, int]] = []

    @property
    def pids(self) -> set[int]:
        return {pid for _, pid in self.kills}

    async def run(self) -> None:
        while True:
            await asyncio.sleep(KILL_EVERY)
            pids = await asyncio.to_thread(self.gateway.worker_pids)
            if not pids:
                continue  # All are dead already.
            victim = self.dice.choice(pids)
            with suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
                self.kills.append((time.monotonic(), victim))

    def killed_just_before(self, moment: float) -> bool:
        return any(at <= moment <= at + TOLD_WITHIN for at, _ in self.kills)


async def make(attempt: Attempt, connection: Connection) -> None:
    if attempt.unsafe:
        connection.send("POST", "/api/checkout", JSON, purchase(attempt.reference))
    else:
        connection.send("GET", "/products/teapot/")
    try:
        async with asyncio.timeout(attempt.patience):
            attempt.answer = await connection.answer()
    except TimeoutError:
        attempt.left = True
        connection.reset() if attempt.rude else connection.close()
    except Gone as gone:
        attempt.gone = str(gone)
    attempt.ended = time.monotonic()


async def client(gateway: Gateway, work: Iterator[Attempt], done: list[Attempt]) -> None:
    connection = await Connection.open(gateway.address)
    for attempt in work:
        if connection.closed or connection.transport.is_closing():
            connection = await Connection.open(gateway.address)
        await make(attempt, connection)
        assert not connection.surplus, (attempt, bytes(connection.surplus[:500]))
        done.append(attempt)
    connection.close()


@story(240)
async def test_killed_workers_and_leaving_clients_lose_nothing_and_repeat_nothing(
    shop: Shop, stub: Services, start: Starter, postgres: Postgres
) -> None:
    print(f"\nseed {SEED}")
    dice = random.Random(SEED)
    stub.set(latency=LATENCY)
    gateway = start(CONFIGURATION)
    descriptors = gateway.descriptors()
    killer = Killer(gateway, random.Random(dice.random()))
    work, done = iter(list(attempts(dice))), []

    began = time.monotonic()
    with watching(postgres) as watch:
        killing = asyncio.create_task(killer.run())
        await asyncio.gather(*(client(gateway, work, done) for _ in range(AT_ONCE)))
        killing.cancel()
    seconds = time.monotonic() - began
    gateway.settles(seconds=60)

    statuses = Counter(attempt.answer.status for attempt in done if attempt.answer)
    left = sum(attempt.left for attempt in done)
    gone = [attempt for attempt in done if attempt.gone]
    print(
        f"{REQUESTS} requests in {seconds:.0f} s, {len(killer.kills)} killed, {left} clients"
        f" left, answers {dict(statuses)}, cut {len(gone)};"
        f" most database connections {watch.most}"
    )
    assert len(done) == REQUESTS
    assert [attempt for attempt in done if attempt.ends != 1] == []
    assert len(killer.kills) >= seconds / KILL_EVERY / 2

    # Who stayed and whose worker lived is served.
    assert gone == []
    assert set(statuses) <= {200, 502, 503}
    assert statuses[502] > 0  # The killing was felt.
    spared = statuses.total() - statuses[502]
    assert statuses[200] >= 0.9 * spared, statuses
    for attempt in done:
        if attempt.answer and attempt.answer.status == 502:
            assert killer.killed_just_before(attempt.ended), attempt

    # Nothing ran twice; what was begun was finished, but for a worker that was killed.
    ledger, charges = shop.ledger("chaos-"), stub.charges()
    nothing = Traces()
    for attempt in done:
        if not attempt.unsafe:
            continue
        traces = ledger.get(attempt.reference, nothing)
        charged = charges.get(attempt.reference, 0)
        assert traces.events in ([], ["started"], ["started", "finished"]), (attempt, traces)
        assert len(traces.orders) == bool(traces.events), (attempt, traces)
        assert len(traces.pids) <= 1, (attempt, traces)
        assert charged <= 1, (attempt, traces)
        if traces.events == ["started"]:
            assert traces.pids <= killer.pids, (attempt, traces)
        if traces.finished:
            assert charged == 1, (attempt, traces)
        if attempt.answer and attempt.answer.status == 200:
            assert traces.finished, (attempt, traces)
            assert attempt.answer.json()["reference"] == attempt.reference
        if attempt.answer and attempt.answer.status == 503:
            assert traces.events == [], (attempt, traces)
    finished = sum(
        ledger.get(attempt.reference, nothing).finished
        for attempt in done
        if attempt.left and attempt.unsafe
    )
    assert finished > 0
    print(f"of the checkouts whose client left {finished} finished")

    # Nothing of it is left. The gateway keeps connections to origins for a while; ours goes now.
    stub.end()
    await eventually(
        f"more than {descriptors} descriptors are open",
        lambda: gateway.descriptors() <= descriptors,
        30,
    )
