"""`async with layby.io`, and streams: on the loop without a slot, and never a connection more."""

from __future__ import annotations

import asyncio
import random
from functools import partial
from urllib.parse import quote

from conftest import TO_THE_STUB, Starter
from support.client import Browser, Connection
from support.origin import HoldingOrigin
from support.services import Services
from support.shop import PASSWORD, USERS, Shop
from support.story import eventually, story

SLOTS = 4
FOUR_SLOTS = f"""
[slots]
count = {SLOTS}

[workers]
processes = 2

{TO_THE_STUB}"""


class User(Browser):
    """Somebody with a name and a language of their own."""

    def __init__(self, number: int, address: tuple[str, int]) -> None:
        super().__init__(address, language=("en", "de")[number % 2])
        self.user = f"user{number + 1:02}"

    @property
    def own(self) -> list[str]:
        return [self.user, self.language]


@story(120)
async def test_40_users_ride_at_a_time_and_none_sees_another_s_state(
    shop: Shop, start: Starter
) -> None:
    # One more connection than slots, and PostgreSQL itself would refuse it.
    shop.allow_connections(SLOTS)
    gateway = start(FOUR_SLOTS)
    users = [User(number, gateway.address) for number in range(USERS)]
    await asyncio.gather(*(user.log_in(user.user, PASSWORD) for user in users))

    async with HoldingOrigin() as origin:
        target = f"/lab/loop/io?url={quote(origin.url)}"
        asking = [asyncio.create_task(user.get(f"{target}/{user.user}")) for user in users]
        await eventually("not all ride", lambda: len(origin.held) == USERS, 30)
        # Nobody holds a slot, so others are served at once.
        await eventually("not all are parked", lambda: gateway.parked() == USERS, 10)
        assert (await Browser(gateway.address).get("/products/teapot/")).status == 200
        origin.release()
        answers = await asyncio.gather(*asking)

    for user, answer in zip(users, answers, strict=True):
        assert answer.status == 200, answer.text
        seen = answer.json()
        assert seen["text"] == f"/{user.user}"
        assert seen["inside"] == [*user.own, "layby-loop"]
        assert seen["before"][:2] == seen["after"][:2] == user.own
    backends = {answer.json()[when][2] for answer in answers for when in ("before", "after")}
    backends |= {pid for answer in answers for pid in answer.json()["beside"]}
    assert len(backends) <= SLOTS
    gateway.settles(SLOTS)
    assert gateway.metric("layby_waits_in_place_total") == 0


@story(60)
async def test_a_client_that_leaves_cancels_the_loop_s_task_of_a_get_and_not_of_a_post(
    shop: Shop, start: Starter
) -> None:
    gateway = start(FOUR_SLOTS)
    async with HoldingOrigin() as origin:
        leavers = {}
        for method in ("GET", "POST"):
            connection = leavers[method] = await Connection.open(gateway.address)
            target = f"/lab/loop/slow?reference=left-{method}&url={quote(origin.url)}/{method}"
            connection.send(method, target)
        await eventually("not both ride", lambda: len(origin.held) == 2, 10)
        for connection in leavers.values():
            connection.close()
        await eventually("the GET is not cancelled", lambda: len(origin.held) == 1, 10)
        await eventually("it is not over", partial(_notes, shop, "left-GET", "finally"), 10)
        origin.release()
    gateway.settles(SLOTS)
    notes = shop.notes("left-")
    assert notes["left-GET"] == ["begun", "cancelled on the loop", "cancelled", "finally"]
    assert notes["left-POST"] == ["begun", "fetched", "finally"]


@story(60)
async def test_below_a_sync_only_middleware_it_rides_while_its_slot_waits(
    shop: Shop, stub: Services, start: Starter
) -> None:
    shop.allow_connections(SLOTS)
    gateway = start(FOUR_SLOTS, LAB_SYNC_MIDDLEWARE="1")
    browser = Browser(gateway.address)
    answer = await browser.get(f"/lab/loop/io?url={quote(stub.url)}/rates")
    assert answer.status == 200, answer.text
    seen = answer.json()
    # The slot that waits runs what goes to slots, on its own connection.
    pids = {seen["before"][2], seen["after"][2], *seen["beside"]}
    assert len(pids) == 1
    assert seen["inside"][2] == "layby-loop"
    assert gateway.metric("layby_waits_in_place_total", reason="middleware") == 1
    (wait,) = gateway.status()["waits_in_place"]
    assert wait["source"].startswith("lab/loop.py:")
    gateway.settles(SLOTS)


@story(60)
async def test_a_stream_parks_between_its_pieces_and_the_first_comes_at_once(
    shop: Shop, start: Starter
) -> None:
    gateway = start(FOUR_SLOTS)
    async with HoldingOrigin() as origin:
        target = f"/lab/loop/stream?reference=stream&seconds=0.2&url={quote(origin.url)}"
        connections = [await Connection.open(gateway.address) for _ in range(2 * SLOTS)]
        for number, connection in enumerate(connections):
            connection.send("GET", f"{target}/{number}")
        # More streams than slots, all under way, and the first piece of each is here.
        await eventually("not all ride", lambda: len(origin.held) == 2 * SLOTS, 20)
        for connection in connections:
            assert b"first " in connection.surplus
        assert (await Browser(gateway.address).get("/products/teapot/")).status == 200
        origin.release()
        answers = await asyncio.gather(*(each.answer() for each in connections))
    for number, answer in enumerate(answers):
        assert answer.text == f"first 0 /{number}"
        assert answer.header("content-type") == "text/event-stream"
    gateway.settles(SLOTS)
    assert shop.notes("stream")["stream"] == ["closed"] * 2 * SLOTS


@story(60)
async def test_a_client_that_leaves_a_stream_has_its_generator_closed_in_a_slot(
    shop: Shop, start: Starter
) -> None:
    shop.allow_connections(SLOTS)
    gateway = start(FOUR_SLOTS)
    async with HoldingOrigin() as origin:
        for reference, seconds in (("parked", "60"), ("riding", "0")):
            connection = await Connection.open(gateway.address)
            target = f"/lab/loop/stream?reference={reference}&seconds={seconds}"
            # Also of a request that would be finished: nobody reads its answer any more.
            connection.send("GET", f"{target}&url={quote(origin.url)}")
            await eventually("no piece", partial(connection.surplus.count, b"first "), 10)
            await eventually("it is not parked", lambda: gateway.parked() == 1, 10)
            if reference == "riding":
                await eventually("it does not ride", lambda: len(origin.held) == 1, 10)
            connection.close()
            await eventually("it is not closed", partial(_notes, shop, reference, "closed"), 10)
            gateway.settles(SLOTS)
        assert not origin.held


def _notes(shop: Shop, reference: str, event: str) -> bool:
    return event in shop.notes(reference).get(reference, [])


@story(120)
async def test_clients_that_leave_at_any_moment_leave_nothing_behind(
    shop: Shop, stub: Services, start: Starter
) -> None:
    shop.allow_connections(SLOTS)
    gateway = start(FOUR_SLOTS)
    stub.set(latency=30)
    url = quote(stub.url)
    chance = random.Random(4)
    recipes = {
        "slow": f"slow?url={url}/",
        "io": f"io?url={url}/",
        "stream": f"stream?seconds=0.01&url={url}/",
        "parallel": "parallel?count=3&meet=1",
    }
    came: list[str] = []

    async def client(number: int) -> None:
        for turn in range(10):
            recipe = chance.choice(list(recipes))
            reference = f"mix-{recipe}-{number}-{turn}"
            connection = await Connection.open(gateway.address)
            connection.send("GET", f"/lab/loop/{recipes[recipe]}&reference={reference}")
            if chance.random() < 0.5:
                await asyncio.sleep(chance.random() * 0.15)
                connection.reset()
                continue
            answer = await connection.answer()
            assert answer.status == 200, (recipe, answer.text)
            came.append(reference)
            connection.close()

    await asyncio.gather(*(client(number) for number in range(16)))
    gateway.settles(SLOTS)
    notes = shop.notes("mix-")
    for reference, seen in notes.items():
        if "-slow-" in reference:
            # Begun is ended, once, however it ended.
            assert seen[0] == "begun", (reference, seen)
            assert seen[-1] == "finally", (reference, seen)
            assert len(seen) == len(set(seen)), (reference, seen)
        if "-stream-" in reference:
            assert seen == ["closed"]
        if "-parallel-" in reference:
            assert len(seen) == len(set(seen)) <= 3, (reference, seen)
    for reference in came:
        if "-io-" not in reference:
            assert reference in notes
    assert gateway.lines_with("given up") == []
    assert gateway.lines_with("must not") == []
    assert gateway.metric("layby_worker_restarts_total") == 0
