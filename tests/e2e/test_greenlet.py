"""greenlet mode: ordinary synchronous code parks, on few slots and their connections."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import quote

import pytest

from conftest import TO_THE_STUB, Starter
from support.checkout import assert_each_ran_once, assert_right, check_out
from support.client import Connection
from support.gateway import Gateway
from support.origin import HoldingOrigin
from support.postgres import Postgres, watching
from support.services import Services
from support.shop import Shop
from support.story import eventually, story

CONFIGURATION = f"""
[slots]
count = 2
queue_timeout = "60s"  # on a busy machine, too

[workers]
processes = 1
mode = "greenlet"

{TO_THE_STUB}"""

WAITS = "layby_waits_in_place_total"


async def ask(gateway: Gateway, path: str, **query: object) -> Any:
    connection = await Connection.open(gateway.address)
    pairs = "&".join(f"{name}={quote(str(value), safe='')}" for name, value in query.items())
    answer = await connection.ask("GET", f"/{path}?{pairs}")
    connection.close()
    return answer


@story(120)
async def test_the_shop_in_greenlet_mode(
    shop: Shop, stub: Services, start: Starter, postgres: Postgres
) -> None:
    gateway = start(CONFIGURATION)
    assert gateway.lines_with("mode greenlet for shop.wsgi:application")
    stub.set(latency=3000)

    async def buy(reference: str) -> None:
        answer = await check_out(await Connection.open(gateway.address), reference)
        assert_right(answer, reference)
        # Its thread, and so its connection, is the same before and after the wait.
        assert answer.json()["began_on"] == answer.json()["on"]

    references = {f"green-{number}" for number in range(40)}
    with watching(postgres) as watch:
        buying = asyncio.gather(*(buy(reference) for reference in sorted(references)))
        # Not all at once on a slow machine, but many more than there are slots.
        await eventually("too few are parked", lambda: gateway.parked() >= 12, 15)
        await buying
    assert gateway.metric("layby_park_seconds_count") == 40
    assert_each_ran_once(shop, stub, "green-", references)
    assert watch.most_slots == 2
    assert gateway.metric(WAITS) == 0
    gateway.settles(2)


@story(60)
async def test_a_checkout_in_a_transaction_waits_in_place(
    shop: Shop, stub: Services, start: Starter
) -> None:
    gateway = start(CONFIGURATION)
    connection = await Connection.open(gateway.address)
    assert_right(await check_out(connection, "atomic", "/api/checkout/atomic"), "atomic")
    assert gateway.metric(WAITS, reason="transaction") == 1
    assert gateway.metric("layby_park_seconds_count") == 0
    # What parks safely still does.
    assert_right(await check_out(connection, "parks"), "parks")
    assert gateway.metric("layby_park_seconds_count") == 1


@pytest.mark.parametrize("path", ["quote", "async-quote"])
@story(60)
async def test_flask_views_park_many_at_a_time(start: Starter, path: str) -> None:
    gateway = start(CONFIGURATION, app="greened")
    async with HoldingOrigin() as origin:
        asking = asyncio.gather(
            *(ask(gateway, path, number=n, url=f"{origin.url}/{n}") for n in range(100))
        )
        await eventually("not all are parked", lambda: gateway.parked() == 100, 15)
        # Both slots are free for others meanwhile.
        assert (await ask(gateway, "ended")).json() == []
        origin.release()
        answers = [answer.json() for answer in await asking]
    assert [(each["number"], each["text"]) for each in answers] == [
        (str(n), f"/{n}") for n in range(100)
    ]
    # New requests go to the slot with the fewest, so that both share what resumes.
    assert len({each["on"] for each in answers}) == 2
    assert gateway.metric(WAITS) == 0
    gateway.settles(2)


@story(60)
async def test_an_answer_that_is_made_piece_by_piece_holds_no_slot_between(start: Starter) -> None:
    gateway = start(CONFIGURATION, app="greened")
    async with HoldingOrigin() as origin:
        asking = asyncio.gather(
            *(ask(gateway, "lines", number=n, url=f"{origin.url}/{n}") for n in range(20))
        )
        await eventually("not all are parked", lambda: gateway.parked() == 20, 15)
        origin.release()
        answers = await asking
    assert [answer.text for answer in answers] == [
        "".join(f"{n}.{line}\n" for line in range(5)) for n in range(20)
    ]
    assert gateway.metric("layby_park_seconds_count") == 100
    assert gateway.metric(WAITS) == 0
    assert sorted((await ask(gateway, "ended")).json(), key=int) == [str(n) for n in range(20)]


@story(60)
async def test_a_client_that_leaves_closes_its_generator_in_a_slot(start: Starter) -> None:
    gateway = start(CONFIGURATION, app="greened")
    async with HoldingOrigin() as origin:
        connection = await Connection.open(gateway.address)
        connection.send("GET", f"/lines?number=7&url={quote(origin.url, safe='')}")
        await eventually(f"it is not parked, see {gateway.log_path}", lambda: gateway.parked(), 15)
        connection.reset()
        await eventually("it is still parked", lambda: gateway.parked() == 0, 15)
        async with asyncio.timeout(15):
            while (await ask(gateway, "ended")).json() != ["7"]:
                await asyncio.sleep(0.05)
    gateway.settles(2)


@story(60)
async def test_a_lock_over_a_park_is_reported_with_both_stacks(start: Starter) -> None:
    gateway = start(CONFIGURATION.replace("count = 2", "count = 1"), app="greened")
    async with HoldingOrigin() as origin:
        parks = asyncio.create_task(ask(gateway, "parks-with-the-lock", url=origin.url))
        await eventually("it is not parked", lambda: gateway.parked() == 1, 15)
        waits = asyncio.create_task(ask(gateway, "waits-for-the-lock"))
        await eventually("it does not run", lambda: gateway.metric("layby_slots", state="busy"), 15)
        origin.release()
        await eventually(
            "the stacks are not told",
            lambda: (
                gateway.lines_with("in waits_for_the_lock")
                and gateway.lines_with("in parks_with_the_lock")
            ),
            10,
        )
        assert gateway.lines_with("parked on it, 1 request:")
        parks.cancel()
        waits.cancel()


@story(120)
async def test_500_requests_leave_nothing_behind(start: Starter) -> None:
    gateway = start(CONFIGURATION.replace("count = 2", "count = 1"), app="greened")
    async with HoldingOrigin() as origin:
        origin.release()

        async def burst() -> None:
            paths = ("quote", "async-quote", "lines")
            answers = await asyncio.gather(
                *(ask(gateway, paths[n % 3], number=n, url=f"{origin.url}/") for n in range(50))
            )
            assert {answer.status for answer in answers} == {200}, gateway.tail()

        await burst()
        before = (await ask(gateway, "counts")).json()
        for _ in range(9):
            await burst()
        after = (await ask(gateway, "counts")).json()
    # How many were parked at once differs from burst to burst; what is kept has a bound.
    assert after.pop("greenlets") <= 64 + 2
    before.pop("greenlets")
    assert after == before
    assert gateway.metric(WAITS) == 0
