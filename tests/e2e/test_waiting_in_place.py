"""Where parking is not safe the request waits in place: right, counted, and named by its line."""

from __future__ import annotations

import asyncio
import re

from conftest import TO_THE_STUB, Starter
from support.checkout import assert_each_ran_once, assert_right, check_out
from support.client import Connection
from support.services import Services
from support.shop import Shop
from support.story import eventually, story

# One process, so that its lines are logged once in all.
ONE_PROCESS = f"""
[slots]
count = 4

[workers]
processes = 1

{TO_THE_STUB}"""

WAITS = "layby_waits_in_place_total"


@story(60)
async def test_a_checkout_in_a_transaction_waits_in_place(
    shop: Shop, stub: Services, start: Starter
) -> None:
    gateway = start(ONE_PROCESS)
    stub.set(latency=400)

    async def buy(reference: str) -> None:
        connection = await Connection.open(gateway.address)
        answer = await check_out(connection, reference, "/api/checkout/atomic")
        assert_right(answer, reference)
        seen = answer.json()
        assert seen["began_on"] == seen["on"]

    references = {f"atomic-{number}" for number in range(6)}
    buying = asyncio.gather(*(buy(reference) for reference in sorted(references)))
    # Nobody is parked: four wait in their slots and two for a slot.
    await eventually(
        "four do not wait in place", lambda: gateway.metric("layby_waiting_in_place") == 4, 10
    )
    assert gateway.parked() == 0
    await buying

    assert_each_ran_once(shop, stub, "atomic-", references)
    gateway.settles(4)
    assert gateway.metric(WAITS, reason="transaction") == len(references)
    assert gateway.metric("layby_park_seconds_count") == 0
    (wait,) = gateway.status()["waits_in_place"]
    assert (wait["reason"], wait["count"]) == ("transaction", len(references))
    assert re.fullmatch(r"store/checkout\.py:\d+", wait["source"]), wait
    (line,) = gateway.lines_with("waits in place")
    assert wait["source"] in line
    assert "transaction.atomic() on database 'default'" in line


@story(60)
async def test_in_strict_mode_a_checkout_in_a_transaction_is_refused_by_name(
    shop: Shop, stub: Services, start: Starter
) -> None:
    gateway = start(ONE_PROCESS, LAYBY_STRICT="1")
    connection = await Connection.open(gateway.address)
    answer = await check_out(connection, "strict", "/api/checkout/atomic")
    assert answer.status == 500
    (line,) = gateway.lines_with("ParkRefused:")
    assert "transaction.atomic() on database 'default'" in line
    # The transaction was rolled back, and nobody was asked for money.
    assert shop.ledger("strict") == {}
    assert stub.charges() == {}
    # What parks safely does so in strict mode too.
    assert_right(await check_out(connection, "parks"), "parks")
    assert gateway.metric(WAITS, reason="transaction") == 0
    assert gateway.metric("layby_park_seconds_count") == 1


@story(60)
async def test_below_a_sync_only_middleware_a_checkout_waits_in_place(
    shop: Shop, stub: Services, start: Starter
) -> None:
    gateway = start(ONE_PROCESS, LAB_SYNC_MIDDLEWARE="1")
    (line,) = gateway.lines_with("lab.middleware.SyncOnly")
    assert "waits in place" in line
    connection = await Connection.open(gateway.address)
    answer = await check_out(connection, "sync")
    assert_right(answer, "sync")
    assert answer.header("lab-sync-only") == "seen"
    assert_each_ran_once(shop, stub, "sync", {"sync"})
    assert gateway.metric(WAITS, reason="middleware") == 1
    assert gateway.metric("layby_park_seconds_count") == 0
    (wait,) = gateway.status()["waits_in_place"]
    assert wait["reason"] == "middleware"
    assert wait["source"].startswith("store/checkout.py:")
