"""A new program on the same sockets, with clients who must not notice."""

from __future__ import annotations

import asyncio
import os
import signal
import time

from conftest import TO_THE_STUB, Starter
from support.checkout import assert_each_ran_once, assert_right, check_out
from support.client import Connection
from support.postgres import Postgres, watching
from support.services import Services
from support.shop import Shop
from support.story import eventually, story

# More of them take minutes: `UPGRADES=20 pytest -s test_upgrades.py` tells the longest wait, too.
UPGRADES = int(os.environ.get("UPGRADES", "2"))

CONFIGURATION = f"""
drain_timeout = "60s"

[slots]
count = 8
queue_timeout = "30s"

{TO_THE_STUB}"""


@story(60 + 20 * UPGRADES)
async def test_upgrades_under_load_lose_nothing_and_open_no_connection_too_many(
    shop: Shop, stub: Services, start: Starter, postgres: Postgres
) -> None:
    stub.set(latency=300)
    gateway = start(CONFIGURATION)
    shop.allow_connections(8)
    pid = gateway.pid
    over = asyncio.Event()
    references: set[str] = set()
    waits: list[float] = []

    async def buy(client: int) -> None:
        turn = 0
        while not over.is_set():
            reference = f"upgrade-{client}-{turn}"
            references.add(reference)
            began = time.monotonic()
            connection = await Connection.open(gateway.address)
            assert_right(await check_out(connection, reference), reference)
            waits.append(time.monotonic() - began)
            connection.close()
            turn += 1

    def programs() -> int:
        return len(gateway.lines_with(" ready listen="))

    with watching(postgres) as watch:
        clients = [asyncio.create_task(buy(client)) for client in range(20)]
        for number in range(UPGRADES):
            await eventually("nobody parks", lambda: gateway.parked() > 4, 20)
            gateway.signal(signal.SIGUSR2)
            wanted = number + 2
            await eventually("no new program", lambda wanted=wanted: programs() == wanted, 60)
        served = len(references)
        await eventually("no more is served", lambda: len(references) > served + 40, 20)
        over.set()
        await asyncio.gather(*clients)

    assert watch.most <= 8, watch.at_the_most
    assert gateway.pid == pid
    assert_each_ran_once(shop, stub, "upgrade-", references)
    gateway.settles()
    assert not gateway.lines_with("ERROR")
    waits.sort()
    print(
        f"{UPGRADES} upgrades, {len(waits)} requests: longest wait {waits[-1]:.2f} s, "
        f"median {waits[len(waits) // 2]:.2f} s"
    )
    gateway.signal(signal.SIGTERM)
    assert await asyncio.to_thread(gateway.wait) == 0
