"""`async with layby.parallel()`: queries side by side on slots, and never a connection more."""

from __future__ import annotations

import asyncio
from itertools import pairwise

from conftest import TO_THE_STUB, Starter
from support.client import Browser
from support.shop import PASSWORD, USERS, Shop
from support.story import story
from test_io import User


def slots(count: int) -> str:
    """All slots in one process, because operations stay in their request's."""
    return f"[slots]\ncount = {count}\n[workers]\nprocesses = 1\n{TO_THE_STUB}"


@story(60)
async def test_three_queries_run_side_by_side_on_three_slots(shop: Shop, start: Starter) -> None:
    shop.allow_connections(3)
    gateway = start(slots(3))
    user = User(1, gateway.address)
    await user.log_in(user.user, PASSWORD)
    # Each ends only when all three have begun, and the database's clock says when that was.
    answer = await user.get("/lab/loop/parallel?reference=three&count=3&meet=3")
    assert answer.status == 200, answer.text
    ops = answer.json()["ops"]
    assert max(op["begun"] for op in ops) < min(op["ended"] for op in ops)
    assert len({op["backend"] for op in ops}) == 3
    for op in (*ops, answer.json()["after"]):
        assert [op["user"], op["language"]] == user.own
    gateway.settles(3)


@story(60)
async def test_one_slot_is_enough_for_any_number(shop: Shop, start: Starter) -> None:
    shop.allow_connections(1)
    gateway = start(slots(1))
    browser = Browser(gateway.address)
    answer = await browser.get("/lab/loop/parallel?reference=one&count=10&meet=1")
    assert answer.status == 200, answer.text
    ops = answer.json()["ops"]
    assert len({op["backend"] for op in ops}) == 1
    spans = sorted((op["begun"], op["ended"]) for op in ops)
    assert all(ended <= begun for (_, ended), (begun, _) in pairwise(spans))
    gateway.settles(1)


@story(120)
async def test_40_users_share_the_slots(shop: Shop, start: Starter) -> None:
    shop.allow_connections(3)
    gateway = start(slots(3))
    users = [User(number, gateway.address) for number in range(USERS)]
    await asyncio.gather(*(user.log_in(user.user, PASSWORD) for user in users))
    answers = await asyncio.gather(
        *(user.get(f"/lab/loop/parallel?reference={user.user}&count=3&meet=1") for user in users)
    )
    for user, answer in zip(users, answers, strict=True):
        assert answer.status == 200, answer.text
        for op in (*answer.json()["ops"], answer.json()["after"]):
            assert [op["user"], op["language"]] == user.own
    # Every operation ran once.
    for user in users:
        assert sorted(shop.notes(user.user)[user.user]) == ["met 0", "met 1", "met 2"]
    assert len({op["backend"] for answer in answers for op in answer.json()["ops"]}) <= 3
    gateway.settles(3)
    assert gateway.metric("layby_waits_in_place_total") == 0


@story(60)
async def test_what_operations_do_wrong_is_said_and_put_right(shop: Shop, start: Starter) -> None:
    shop.allow_connections(2)
    gateway = start(slots(2))
    browser = Browser(gateway.address)
    for number in range(4):
        answer = await browser.get(f"/lab/loop/parallel-fails?reference=wrong-{number}")
        assert answer.status == 200, answer.text
        left, refused, failed = answer.json()["seen"]
        assert left.startswith(
            "left open at the end of what it ran in a slot: transaction.atomic()"
        )
        assert "layby.parallel() cannot be used here (transaction.atomic()" in refused
        assert failed == "2"
        assert answer.json()["in_block"] is False
        # What was left open is rolled back.
        assert shop.notes(f"wrong-{number}") == {f"wrong-{number}": ["kept"]}
    gateway.settles(2)
