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
from enum import Enum
from urllib.parse import quote

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
AT_ONCE = 64
LATENCY = 400  # ms, of each third party
KILL_EVERY = 2.0

# Four processes, so that somebody serves even where a start takes longer than two seconds.
CONFIGURATION = """
[slots]
count = 8
queue_timeout = "20s"
request_timeout = "60s"

[workers]
processes = 4

[outbound]
allow = ["127.0.0.1"]
"""


class Kind(Enum):
    CHECKOUT = "a POST that parks"
    QUOTE = "a GET that parks"
    PAGE = "a GET that does not"


@dataclass
class Attempt:
    """One request, what its client is up to, and what became of it."""

    reference: str
    kind: Kind
    patience: float | None  # seconds until the client leaves; None: it stays
    rude: bool  # it leaves with a reset
    answer: Answer | None = None
    gone: str | None = None
    left: bool = False

    @property
    def ends(self) -> int:
        return (self.answer is not None) + (self.gone is not None) + self.left


def attempts(dice: random.Random) -> Iterator[Attempt]:
    for number in range(REQUESTS):
        # Many of those who mean to leave are answered before: about a fifth is what remains.
        leaves = dice.random() < 0.4
        (kind,) = dice.choices(list(Kind), [4, 3, 3])
        yield Attempt(
            reference=f"chaos-{number}",
            kind=kind,
            # Short and long waits alike, so that some leave queued ones and some parked ones on
            # machines of any speed.
            patience=dice.uniform(0, dice.choice([0.1, 0.3, 1, 4])) if leaves else None,
            rude=dice.random() < 0.5,
        )


class Killer:
    """Kills a worker process every two seconds."""

    def __init__(self, gateway: Gateway, dice: random.Random) -> None:
        self.gateway = gateway
        self.dice = dice
        self.killed: set[int] = set()

    async def run(self) -> None:
        while True:
            await asyncio.sleep(KILL_EVERY)
            pids = await asyncio.to_thread(self.gateway.worker_pids)
            if not pids:
                continue  # All are dead already.
            victim = self.dice.choice(pids)
            with suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
                self.killed.add(victim)


async def make(attempt: Attempt, connection: Connection, origin: str) -> None:
    match attempt.kind:
        case Kind.CHECKOUT:
            connection.send("POST", "/api/checkout", JSON, purchase(attempt.reference))
        case Kind.QUOTE:
            target = f"/lab/slow?reference={attempt.reference}&url={quote(origin, safe='')}"
            connection.send("GET", target)
        case Kind.PAGE:
            connection.send("GET", "/products/teapot/")
    try:
        async with asyncio.timeout(attempt.patience):
            attempt.answer = await connection.answer()
    except TimeoutError:
        attempt.left = True
        connection.reset() if attempt.rude else connection.close()
    except Gone as gone:
        attempt.gone = str(gone)


async def client(
    gateway: Gateway, origin: str, work: Iterator[Attempt], done: list[Attempt]
) -> None:
    connection = await Connection.open(gateway.address)
    for attempt in work:
        if connection.closed or connection.transport.is_closing():
            connection = await Connection.open(gateway.address)
        await make(attempt, connection, origin)
        assert not connection.surplus, (attempt, bytes(connection.surplus[:500]))
        done.append(attempt)
    connection.close()


def end_of_quote(events: list[str], *, killed: bool) -> str:
    """What a quote came to whose client had left: it is unwound to its end, unless killed."""
    if events[-1] != "finally" and killed:
        return "killed"
    assert events in (["begun", "fetched", "finally"], ["begun", "cancelled", "finally"])
    return events[1]


@story(280)
async def test_killed_workers_and_leaving_clients_lose_nothing_and_repeat_nothing(
    shop: Shop, stub: Services, start: Starter, postgres: Postgres
) -> None:
    print(f"\nseed {SEED}")
    dice = random.Random(SEED)
    stub.set(latency=LATENCY)
    gateway = start(CONFIGURATION)
    descriptors = gateway.descriptors()
    killer = Killer(gateway, random.Random(dice.random()))
    work = iter(list(attempts(dice)))
    done: list[Attempt] = []

    began = time.monotonic()
    with watching(postgres, every=0.02) as watch:
        killing = asyncio.create_task(killer.run())
        await asyncio.gather(*(client(gateway, stub.url + "/", work, done) for _ in range(AT_ONCE)))
        killing.cancel()
    seconds = time.monotonic() - began
    gateway.settles(seconds=60)

    statuses = Counter(attempt.answer.status for attempt in done if attempt.answer)
    left = sum(attempt.left for attempt in done)
    gone = [attempt for attempt in done if attempt.gone]
    print(
        f"{REQUESTS} requests in {seconds:.0f} s, {len(killer.killed)} killed, {left} clients"
        f" left, answers {dict(statuses)}, cut {len(gone)};"
        f" most database connections {watch.most}"
    )
    assert len(done) == REQUESTS
    assert [attempt for attempt in done if attempt.ends != 1] == []
    assert len(killer.killed) >= 5
    assert left >= REQUESTS / 10

    assert watch.most <= 8, watch.at_the_most

    # Who stayed and whose worker lived is served.
    assert gone == []
    assert set(statuses) <= {200, 502, 503}
    assert statuses[502] > 0  # The killing was felt.
    spared = statuses.total() - statuses[502]
    assert statuses[200] >= 0.9 * spared, statuses

    # Nothing ran twice; what was begun was finished, but for a worker that was killed.
    ledger, charges = shop.ledger("chaos-"), stub.charges()
    nothing = Traces()
    for attempt in done:
        traces = ledger.get(attempt.reference, nothing)
        if attempt.answer and attempt.answer.status == 502:
            assert traces.pids <= killer.killed, (attempt, traces)
        if attempt.kind is not Kind.CHECKOUT:
            continue
        charged = charges.get(attempt.reference, 0)
        assert traces.events in ([], ["started"], ["started", "finished"]), (attempt, traces)
        assert len(traces.orders) == bool(traces.events), (attempt, traces)
        assert len(traces.pids) <= 1, (attempt, traces)
        assert charged <= 1, (attempt, traces)
        if traces.events == ["started"]:
            assert traces.pids <= killer.killed, (attempt, traces)
        if traces.finished:
            assert charged == 1, (attempt, traces)
        if attempt.answer and attempt.answer.status == 200:
            assert traces.finished, (attempt, traces)
            assert attempt.answer.json()["reference"] == attempt.reference
        if attempt.answer and attempt.answer.status == 503:
            assert traces.events == [], (attempt, traces)
    # Of those whose client left, checkouts go on and quotes are unwound; their code is not cut.
    notes = shop.notes("chaos-")
    checkouts, quotes = Counter[str](), Counter[str]()
    for attempt in done:
        if not attempt.left or attempt.reference not in notes:
            continue
        killed = ledger[attempt.reference].pids <= killer.killed
        if attempt.kind is Kind.CHECKOUT:
            checkouts["finished" if ledger[attempt.reference].finished else "killed"] += 1
        else:
            quotes[end_of_quote(notes[attempt.reference], killed=killed)] += 1
    print(f"whose client left when they had begun: checkouts {checkouts}, quotes {quotes}")
    # Else they left too early for this to mean anything.
    assert checkouts["finished"] > 0
    assert quotes["cancelled"] > 0

    # Nothing of it is left. The gateway keeps connections to origins for a while; ours goes now.
    stub.end()
    await eventually(
        f"more than {descriptors} descriptors are open",
        lambda: gateway.descriptors() <= descriptors,
        30,
    )
