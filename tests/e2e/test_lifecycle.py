"""Starting, reloading and ending, with clients who must not notice."""

from __future__ import annotations

import asyncio
import os
import signal
import time

from conftest import TO_THE_STUB, Starter
from support.checkout import Buying, assert_each_ran_once, assert_right, check_out
from support.client import Connection, Gone
from support.postgres import Postgres, watching
from support.services import Services
from support.shop import Shop
from support.story import eventually, story

CONFIGURATION = f"""
drain_timeout = "60s"

[slots]
count = 8
queue_timeout = "30s"

{TO_THE_STUB}"""


@story(120)
async def test_a_reload_under_load_replaces_all_workers_and_loses_nothing(
    shop: Shop, stub: Services, start: Starter, postgres: Postgres
) -> None:
    stub.set(latency=300)
    gateway = start(CONFIGURATION)
    shop.allow_connections(8)
    old = set(gateway.worker_pids())

    with watching(postgres) as watch:
        buying = Buying(gateway, "reload-", 20)
        await eventually("nobody parks", lambda: gateway.parked() > 4, 10)
        gateway.signal(signal.SIGHUP)
        seen: list[int] = []

        def replaced() -> bool:
            seen.append(len(gateway.worker_pids()))
            return len(gateway.lines_with("worker replaced")) == len(old)

        await eventually("not all workers are replaced", replaced, 60)
        served = len(buying.references)
        await eventually("no more is served", lambda: len(buying.references) > served + 100, 20)
        await buying.end()

    assert watch.most <= 8, watch.at_the_most
    # One after the other: never more than one beside those that are to stay.
    assert max(seen) <= len(old) + 1
    new = set(gateway.worker_pids())
    assert len(new) == len(old)
    assert not new & old
    assert_each_ran_once(shop, stub, "reload-", buying.references)
    gateway.settles()
    assert gateway.metric("layby_worker_restarts_total", reason="reload") == len(old)
    assert gateway.metric("layby_worker_restarts_total") == len(old)


@story(60)
async def test_a_reload_with_mistakes_changes_nothing(start: Starter) -> None:
    gateway = start()
    old = gateway.worker_pids()
    gateway.configuration.write_text("[slots]\nqueue = -1\ncuont = 8\n")
    gateway.signal(signal.SIGHUP)
    gateway.wait_for("reload refused, the old configuration stays")
    assert "queue" in gateway.log
    assert "cuont" in gateway.log
    assert gateway.worker_pids() == old
    connection = await Connection.open(gateway.address)
    assert (await connection.ask("GET", "/healthz")).text == "ok\n"


@story(60)
async def test_a_drain_in_the_middle_of_a_reload_is_no_error(start: Starter) -> None:
    gateway = start()
    gateway.signal(signal.SIGHUP)
    gateway.wait_for("configuration reloaded")
    # The new worker has not begun to import the application yet.
    gateway.signal(signal.SIGTERM)
    assert gateway.wait() == 0
    assert not gateway.lines_with("worker replaced")
    assert not gateway.lines_with("ERROR")


@story(60)
async def test_a_drain_answers_all_that_was_accepted_and_ends_with_0(
    shop: Shop, stub: Services, start: Starter
) -> None:
    stub.set(latency=4000)
    gateway = start(CONFIGURATION)
    connections = [await Connection.open(gateway.address) for _ in range(60)]
    idle = await Connection.open(gateway.address)
    assert (await idle.ask("GET", "/healthz")).status == 200
    references = [f"drain-{number}" for number in range(len(connections))]
    buying = [
        asyncio.create_task(check_out(connection, reference))
        for connection, reference in zip(connections, references, strict=True)
    ]
    # Some are parked, others are still in the queue.
    await eventually("too few are parked", lambda: gateway.parked() > 20, 10)
    gateway.signal(signal.SIGTERM)
    await eventually("no drain", lambda: gateway.lines_with("drain started"), 5)

    # Who comes now is not let in, and the readiness says so.
    assert gateway.admin("/readyz")[0] == 503
    assert gateway.admin("/livez")[0] == 200
    await idle.ended()
    late: Connection | None = None
    try:
        late = await Connection.open(gateway.address)
        answer = await late.ask("GET", "/healthz")
        assert (answer.status, answer.header("connection")) == (503, "close")
    except (ConnectionRefusedError, ConnectionResetError, Gone):
        pass  # As good: a balancer takes the next replica.

    for reference, answer in zip(references, await asyncio.gather(*buying), strict=True):
        assert_right(answer, reference)
    for connection in connections:
        await connection.ended()
        assert not connection.surplus
    assert await asyncio.to_thread(gateway.wait) == 0
    assert gateway.lines_with("drained")
    assert_each_ran_once(shop, stub, "drain-", set(references))


@story(60)
async def test_a_second_signal_ends_a_drain_at_once(stub: Services, start: Starter) -> None:
    stub.set(latency=30_000)
    gateway = start(CONFIGURATION)
    workers = gateway.worker_pids()
    connection = await Connection.open(gateway.address)
    buying = asyncio.create_task(check_out(connection, "hopeless"))
    await eventually("it is not parked", lambda: gateway.parked() == 1, 10)
    gateway.signal(signal.SIGINT)
    await eventually("no drain", lambda: gateway.lines_with("drain started"), 5)
    began = time.monotonic()
    gateway.signal(signal.SIGINT)
    assert await asyncio.to_thread(gateway.wait, 5) == 1
    assert time.monotonic() - began < 3
    (outcome,) = await asyncio.gather(buying, return_exceptions=True)
    assert isinstance(outcome, Gone)
    await eventually("workers are left", lambda: not any(map(alive, workers)), 10)


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@story(60)
async def test_a_killed_worker_ends_its_own_requests_at_once_and_no_others(
    shop: Shop, stub: Services, start: Starter
) -> None:
    stub.set(latency=12_000)
    gateway = start(CONFIGURATION)
    references = [f"killed-{number}" for number in range(30)]
    connections = [await Connection.open(gateway.address) for _ in references]
    buying = [
        asyncio.create_task(check_out(connection, reference))
        for connection, reference in zip(connections, references, strict=True)
    ]
    await eventually("not all are parked", lambda: gateway.parked() == len(references), 8)
    victim = gateway.worker_pids()[0]
    traces = shop.ledger("killed-")
    hit = {reference for reference in references if traces[reference].pids == {victim}}
    assert 0 < len(hit) < len(references)

    os.kill(victim, signal.SIGKILL)
    await asyncio.wait(buying, timeout=2)
    told = {
        reference: task.result().status
        for reference, task in zip(references, buying, strict=True)
        if task.done()
    }
    assert told == dict.fromkeys(hit, 502)
    answers = dict(zip(references, await asyncio.gather(*buying), strict=True))
    for reference, answer in answers.items():
        if reference in hit:
            assert answer.status == 502, reference
        else:
            assert_right(answer, reference)

    gateway.settles()
    assert victim not in gateway.worker_pids()
    assert len(gateway.worker_pids()) == 2
    assert gateway.metric("layby_worker_restarts_total", reason="crash") == 1
    assert gateway.metric("layby_requests_total", status="502") == len(hit)


@story(60)
async def test_workers_end_when_their_gateway_is_gone(start: Starter) -> None:
    gateway = start()
    workers = gateway.worker_pids()
    assert all(map(alive, workers))
    gateway.signal(signal.SIGKILL)
    gateway.wait()
    await eventually("workers are left", lambda: not any(map(alive, workers)), 10)


def test_an_app_that_cannot_be_imported_shows_why_and_the_gateway_ends_with_1(
    start: Starter,
) -> None:
    gateway = start(app="broken:application", ready=False)
    assert gateway.wait() == 1
    assert "Traceback (most recent call last)" in gateway.log
    assert "RuntimeError: the shop burnt down" in gateway.log
    (line,) = gateway.lines_with("ERROR")
    assert "broken:application cannot be imported" in line
    assert "panicked" not in gateway.log


def test_an_address_that_is_taken_is_told_in_one_line(start: Starter) -> None:
    first = start()
    second = start(ready=False, flags=(f"--listen=127.0.0.1:{first.port}",))
    assert second.wait() == 1
    (line,) = second.lines_with("ERROR")
    assert f"127.0.0.1:{first.port}" in line
