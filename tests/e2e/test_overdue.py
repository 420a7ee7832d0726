"""Slots that do not come back, and workers that are replaced while they are of use.

At every moment the slots are all accounted for, and no more database connections are open than
there are slots; every request has one outcome.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from conftest import TO_THE_STUB, Starter
from support.checkout import Buying, assert_each_ran_once, assert_right, check_out
from support.client import Connection
from support.gateway import Gateway
from support.postgres import Postgres, watching
from support.services import Services
from support.shop import Shop
from support.story import eventually, story


@contextmanager
def accounted_for(gateway: Gateway, slots: int) -> Iterator[None]:
    """Samples `/metrics`: idle, busy and lost slots are all that there are, every time."""
    over = threading.Event()
    sums: Counter[int] = Counter()

    def sample() -> None:
        while not over.wait(0.02):
            sums[int(gateway.metric("layby_slots"))] += 1

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    assert set(sums) == {slots}, sums
    assert sums[slots] > 5


HASTY = f"""
[slots]
count = 4
request_timeout = "2s"
overdue_grace = "2500ms"

[workers]
processes = 2

{TO_THE_STUB}"""


@pytest.mark.parametrize(
    ("path", "stack"),
    [
        ("/lab/stuck?seconds=60", "time.sleep("),
        ("/lab/stuck-query?seconds=60", "pg_sleep("),
        # Only a signal gets through to this one.
        ("/lab/held", "in held"),
    ],
)
@story(60)
async def test_a_process_with_a_stuck_request_is_replaced_and_costs_that_one_alone(
    shop: Shop, stub: Services, start: Starter, postgres: Postgres, path: str, stack: str
) -> None:
    postgres.give_up_queries_of_the_dead()
    stub.set(latency=50)
    gateway = start(HASTY)
    before = gateway.worker_pids()
    over = asyncio.Event()
    statuses: Counter[int] = Counter()
    references: set[str] = set()

    async def buy(client: int) -> None:
        connection = await Connection.open(gateway.address)
        turn = 0
        while not over.is_set():
            reference = f"overdue-{client}-{turn}"
            answer = await check_out(connection, reference)
            statuses[answer.status] += 1
            if answer.status == 200:
                assert_right(answer, reference)
                references.add(reference)
            turn += 1
            await asyncio.sleep(0.02)

    def replaced() -> bool:
        now = gateway.worker_pids()
        return len(now) == 2 and len(set(now) - set(before)) == 1

    def whole() -> bool:
        return gateway.metric("layby_slots", state="lost") == 0

    with watching(postgres) as watch, accounted_for(gateway, 4):
        connection = await Connection.open(gateway.address)
        await connection.ask("GET", "/products/teapot/")
        stuck = await connection.ask("GET", path)
        assert stuck.status == 504
        assert 1.75 <= stuck.seconds <= 2.25, stuck.seconds
        buying = [asyncio.create_task(buy(client)) for client in range(4)]
        await eventually("it is not replaced", replaced, 20)
        await eventually("its slots are not there", whole, 20)
        over.set()
        await asyncio.gather(*buying)
        gateway.settles(4)

    assert len(set(gateway.worker_pids()) & set(before)) == 1
    log = gateway.log
    assert stack in log
    assert f"GET {path.partition('?')[0]}" in log
    # The interpreter that is held keeps what its process had begun, and their clients have 504.
    assert set(statuses) <= {200, 504}, statuses
    assert statuses[200] > 20
    ledger = shop.ledger("overdue-")
    assert all(traces.events.count("started") <= 1 for traces in ledger.values())
    assert all(ledger[reference].finished for reference in references)
    # The database may have a query of the killed one still, until it looks.
    spare = 1 if "query" in path else 0
    assert watch.most <= 4 + spare, watch.at_the_most
    assert gateway.metric("layby_worker_restarts_total", reason="overdue") == 1
    assert gateway.metric("layby_worker_restarts_total") == 1


@story(60)
async def test_a_stopped_process_is_replaced_and_the_others_go_on(
    shop: Shop, stub: Services, start: Starter, postgres: Postgres
) -> None:
    stub.set(latency=100)
    gateway = start(HASTY)
    (victim, *others) = gateway.worker_pids()
    over = asyncio.Event()
    answers: dict[str, int] = {}

    async def buy(client: int) -> None:
        connection = await Connection.open(gateway.address)
        turn = 0
        while not over.is_set():
            reference = f"stopped-{client}-{turn}"
            answer = await check_out(connection, reference)
            answers[reference] = answer.status
            if answer.status == 504:
                assert 1.75 <= answer.seconds <= 2.5, answer.seconds
            turn += 1
            await asyncio.sleep(0.05)

    with watching(postgres) as watch, accounted_for(gateway, 4):
        buying = [asyncio.create_task(buy(client)) for client in range(6)]
        await eventually("nobody parks", lambda: gateway.parked() > 1, 10)
        os.kill(victim, signal.SIGSTOP)
        # By its silence, or by what the slots are at that it had when it was stopped.
        await eventually("it is not noticed", lambda: gateway.lines_with("worker overdue"), 15)
        assert gateway.admin("/readyz")[0] == 200
        await eventually("it is there", lambda: victim not in gateway.worker_pids(), 15)
        await eventually("nobody follows", lambda: len(gateway.worker_pids()) == 2, 15)
        over.set()
        await asyncio.gather(*buying)
        gateway.settles(4)

    assert set(others) <= set(gateway.worker_pids())
    assert gateway.metric("layby_worker_restarts_total", reason="overdue") == 1
    assert watch.most <= 4, watch.at_the_most
    statuses = Counter(answers.values())
    # What the stopped one had is told so on time; 502 for who waited for it when it was killed.
    assert set(statuses) <= {200, 502, 504}, statuses
    assert statuses[200] > 20, statuses
    ledger, charges = shop.ledger("stopped-"), stub.charges()
    for reference, status in answers.items():
        traces = ledger.get(reference)
        assert charges.get(reference, 0) <= 1, reference
        if status == 200:
            assert traces is not None, reference
            assert traces.events == ["started", "finished"], (reference, traces)
        elif traces is not None:
            assert traces.events in (["started"], ["started", "finished"]), (reference, traces)


RECYCLING = f"""
[slots]
count = 8
queue_timeout = "20s"

[workers]
processes = 2
max_requests = 60

{TO_THE_STUB}"""


@story(120)
async def test_recycling_under_load_loses_no_parked_request(
    shop: Shop, stub: Services, start: Starter, postgres: Postgres
) -> None:
    stub.set(latency=300)
    gateway = start(RECYCLING)
    shop.allow_connections(8)

    def recycled() -> bool:
        return gateway.metric("layby_worker_restarts_total", reason="recycled") >= 2

    with watching(postgres) as watch, accounted_for(gateway, 8):
        buying = Buying(gateway, "recycled-", 24)
        await eventually("too few are recycled", recycled, 90)
        await buying.end()
        gateway.settles()

    assert watch.most <= 8, watch.at_the_most
    assert_each_ran_once(shop, stub, "recycled-", buying.references)
    assert gateway.metric("layby_worker_restarts_total", reason="crash") == 0
    assert gateway.metric("layby_worker_restarts_total", reason="overdue") == 0
