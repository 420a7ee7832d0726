"""Many more clients than slots: what waits holds neither a slot nor a database connection."""

from __future__ import annotations

import asyncio
import statistics
import time
from urllib.parse import quote

from conftest import Starter
from support.checkout import assert_each_ran_once, assert_right, check_out
from support.client import Answer, Connection
from support.gateway import Gateway, resident
from support.origin import HoldingOrigin
from support.postgres import Postgres, watching
from support.services import Services
from support.shop import Shop
from support.story import eventually, story

# The times are for a debug build on a busy machine; what is tested is what happens, not how fast.
PATIENT = """
[slots]
count = 8
queue = 10000
queue_timeout = "120s"
request_timeout = "300s"

[outbound]
allow = ["127.0.0.1"]
"""


@story(200)
async def test_400_clients_on_8_slots_never_have_more_than_8_database_connections(
    shop: Shop, stub: Services, start: Starter, postgres: Postgres
) -> None:
    clients, rounds = 400, 2
    stub.set(latency=500)
    gateway = start(PATIENT, SHOP_SERVICES_TIMEOUT="120")
    shop.allow_connections(8)

    async def buy(client: int) -> None:
        connection = await Connection.open(gateway.address)
        for turn in range(rounds):
            reference = f"load-{client}-{turn}"
            assert_right(await check_out(connection, reference), reference)
        assert not connection.surplus

    began = time.monotonic()
    with watching(postgres) as watch:
        await asyncio.gather(*(buy(client) for client in range(clients)))
    seconds = time.monotonic() - began

    assert watch.most_slots == 8, watch.at_the_most
    assert watch.most == 8, watch.at_the_most
    references = {f"load-{c}-{r}" for c in range(clients) for r in range(rounds)}
    assert_each_ran_once(shop, stub, "load-", references)
    gateway.settles()
    assert gateway.metric("layby_park_seconds_count") == len(references)
    counts = stub.counts()
    assert counts["most_held"] > 24  # 8 threads that wait themselves would get so far
    print(
        f"\n{len(references)} checkouts of {clients} clients on 8 slots: {seconds:.1f} s,"
        f" {len(references) / seconds:.0f}/s; most database connections {watch.most}"
        f" in {watch.samples} samples; most fetches at once {counts['most_held']}"
    )


async def product_pages(gateway: Gateway, count: int) -> list[float]:
    """The seconds that each of so many product pages took, one after the other."""
    connection = await Connection.open(gateway.address)
    took = []
    for _ in range(count):
        answer = await connection.ask("GET", "/products/teapot/")
        assert answer.status == 200, answer.text
        assert "<h1>Teapot</h1>" in answer.text
        took.append(answer.seconds)
    connection.close()
    return took


def memory(gateway: Gateway) -> tuple[int, int]:
    return resident(gateway.pid), sum(resident(pid) for pid in gateway.worker_pids())


@story(280)
async def test_5000_requests_are_parked_on_8_slots_while_pages_are_served(start: Starter) -> None:
    count, pages = 5000, 100
    gateway = start(PATIENT)
    await product_pages(gateway, 16)
    idle = await product_pages(gateway, pages)
    before, descriptors = memory(gateway), gateway.descriptors()

    async with HoldingOrigin() as origin:
        connections: list[Connection] = []
        for number in range(count):
            connection = await Connection.open(gateway.address)
            connection.send("GET", f"/lab/wait?url={quote(origin.url)}/{number}")
            connections.append(connection)
        await eventually("not all are parked", lambda: gateway.parked() == count, 150)
        await eventually("not all fetches arrived", lambda: len(origin.held) == count, 20)
        status = gateway.status()
        assert status["slots"]["idle"] == 8
        assert status["queue"]["length"] == 0

        meanwhile = await product_pages(gateway, pages)
        assert gateway.parked() == count
        while_parked = memory(gateway)
        while_open = gateway.descriptors()

        released = time.monotonic()
        origin.release()
        answers: list[Answer] = await asyncio.gather(*(each.answer() for each in connections))
        resumed = time.monotonic() - released

    for number, answer in enumerate(answers):
        assert (answer.status, answer.text) == (200, f"12 /{number} 12"), number
    assert not any(connection.surplus for connection in connections)
    for connection in connections:
        connection.close()
    gateway.settles()
    await eventually(
        f"more than {descriptors} descriptors are open",
        lambda: gateway.descriptors() <= descriptors,
        20,
    )
    of_gateway, of_workers = (
        (now - then) / count / 1024 for now, then in zip(while_parked, before, strict=True)
    )
    cuts = {
        name: statistics.quantiles(took, n=100, method="inclusive")
        for name, took in (("idle", idle), ("meanwhile", meanwhile))
    }
    print(
        f"\n{count} parked on 8 slots, {while_open} descriptors; product page, median and 99th:"
        f" {cuts['idle'][49] * 1000:.1f} and {cuts['idle'][98] * 1000:.1f} ms on an idle gateway,"
        f" {cuts['meanwhile'][49] * 1000:.1f} and {cuts['meanwhile'][98] * 1000:.1f} ms meanwhile;"
        f" all resumed in {resumed:.1f} s; memory per parked request {of_gateway:.1f} KiB in the"
        f" gateway and {of_workers:.1f} KiB in the workers"
    )
