"""The request's time is over: the client is told on time, and the code that ran is unwound."""

from __future__ import annotations

import asyncio
from urllib.parse import quote

from conftest import TO_THE_STUB, Starter
from support.client import Answer, Connection
from support.services import Services
from support.shop import Shop
from support.story import eventually, story

ONE_SECOND = f"""
[slots]
count = 4
request_timeout = "1s"

{TO_THE_STUB}"""


def assert_on_time(answer: Answer) -> None:
    assert answer.status == 504, answer.text
    assert 0.75 <= answer.seconds <= 1.25, answer.seconds


def slow(stub: Services, reference: str) -> str:
    url = f"{stub.url}/?latency=8000"
    return f"/lab/slow?reference={reference}&url={quote(url, safe='')}"


@story(60)
async def test_an_unsafe_request_past_its_time_is_answered_504_and_runs_to_its_end(
    shop: Shop, stub: Services, start: Starter
) -> None:
    gateway = start(ONE_SECOND)
    references = [f"post-{number}" for number in range(20)]
    connections = [await Connection.open(gateway.address) for _ in references]
    # Warm: the first query of a slot connects.
    await asyncio.gather(*(each.ask("GET", "/products/teapot/") for each in connections[:8]))
    answers = await asyncio.gather(
        *(
            connection.ask("POST", slow(stub, reference))
            for connection, reference in zip(connections, references, strict=True)
        )
    )
    for answer in answers:
        assert_on_time(answer)
    gateway.settles(4)
    notes = shop.notes("post-")
    for reference in references:
        seen = notes[reference]
        assert seen[0] == "begun", seen
        assert seen[1].startswith("timeout in phase"), seen
        assert seen[2:] == ["finally"], seen
    await eventually("fetches go on", lambda: stub.counts()["held"] <= 1, 5)
    assert gateway.metric("layby_requests_total", method="POST", status="504") == 20


@story(60)
async def test_a_safe_request_past_its_time_is_unwound(
    shop: Shop, stub: Services, start: Starter
) -> None:
    gateway = start(ONE_SECOND)
    connection = await Connection.open(gateway.address)
    await connection.ask("GET", "/products/teapot/")
    assert_on_time(await connection.ask("GET", slow(stub, "get")))
    gateway.settles(4)
    # What it waited for and itself are over at the same moment; it learns of one or the other.
    begun, how, last = shop.notes("get")["get"]
    assert (begun, last) == ("begun", "finally")
    assert how == "cancelled" or how.startswith("timeout in phase")
    # The connection goes on.
    assert (await connection.ask("GET", "/healthz")).status == 200


@story(60)
async def test_a_client_that_leaves_cancels_a_parked_get_and_not_a_post(
    shop: Shop, stub: Services, start: Starter
) -> None:
    gateway = start()
    url = quote(f"{stub.url}/?latency=1500", safe="")
    for method in ("GET", "POST"):
        connection = await Connection.open(gateway.address)
        connection.send(method, f"/lab/slow?reference=left-{method}&url={url}")
        await eventually("it is not parked", lambda: gateway.parked() == 1, 10)
        connection.reset()
        await connection.ended()
        gateway.settles()
    assert shop.notes("left-") == {
        "left-GET": ["begun", "cancelled", "finally"],
        "left-POST": ["begun", "fetched", "finally"],
    }
    assert gateway.metric("layby_requests_cancelled_total", phase="parked") == 2


@story(60)
async def test_a_stuck_worker_does_not_delay_the_504_and_its_slot_comes_back(
    stub: Services, start: Starter
) -> None:
    gateway = start(ONE_SECOND)
    connections = [await Connection.open(gateway.address) for _ in range(3)]
    stuck = [asyncio.create_task(each.ask("GET", "/lab/stuck?seconds=3")) for each in connections]
    for answer in await asyncio.gather(*stuck):
        assert_on_time(answer)
    slots = gateway.status()["slots"]
    assert (slots["lost"], slots["idle"]) == (3, 1)
    # The slot that is left serves.
    answer = await connections[0].ask("GET", "/healthz")
    assert answer.status == 200
    gateway.settles(4, seconds=10)
    assert gateway.metric("layby_worker_restarts_total", reason="overdue") == 0
