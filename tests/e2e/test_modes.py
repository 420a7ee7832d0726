"""Which mode an application gets, and that it is served right in each."""

from __future__ import annotations

import asyncio
import json
from urllib.parse import quote

from conftest import TO_THE_STUB, Starter
from support.checkout import JSON, assert_right, check_out
from support.client import Connection
from support.services import Services
from support.story import story


@story(60)
async def test_auto_is_coroutine_mode_for_the_shop(stub: Services, start: Starter) -> None:
    gateway = start()
    assert [process["mode"] for process in gateway.status()["processes"]] == ["coroutine"] * 2
    assert gateway.lines_with("mode coroutine for shop.wsgi:application")
    connection = await Connection.open(gateway.address)
    assert_right(await check_out(connection, "auto"), "auto")
    assert gateway.metric("layby_park_seconds_count") == 1


@story(60)
async def test_the_shop_in_wsgi_mode_waits_in_place(stub: Services, start: Starter) -> None:
    gateway = start(flags=("--mode=wsgi", "--slots=2", "--processes=1"))
    connection = await Connection.open(gateway.address)
    assert_right(await check_out(connection, "in-place"), "in-place")
    assert (await connection.ask("GET", "/products/teapot/")).status == 200
    assert gateway.metric("layby_park_seconds_count") == 0
    assert gateway.metric("layby_waits_in_place_total", reason="mode") == 1


@story(60)
async def test_a_plain_wsgi_app_waits_in_place(stub: Services, start: Starter) -> None:
    gateway = start(TO_THE_STUB, app="plain", flags=("--slots=4", "--processes=1"))
    assert gateway.lines_with("mode wsgi for plain:application")
    connection = await Connection.open(gateway.address)
    answer = await connection.ask("GET", "/")
    assert (answer.status, answer.body) == (200, b"hello")

    stub.set(latency=200)

    async def fetch() -> None:
        own = await Connection.open(gateway.address)
        answer = await own.ask("GET", f"/fetch?url={quote(stub.url + '/', safe='')}")
        assert (answer.status, json.loads(answer.body)) == (200, {"ok": True})

    await asyncio.gather(*(fetch() for _ in range(12)))
    assert gateway.metric("layby_waits_in_place_total", reason="mode") == 12
    (wait,) = gateway.status()["waits_in_place"]
    assert wait["source"].startswith("plain.py:")
    gateway.settles(4)


@story(60)
async def test_a_flask_app_fetches_side_by_side_in_place(stub: Services, start: Starter) -> None:
    gateway = start(TO_THE_STUB, app="flasked", flags=("--slots=2", "--processes=1"))
    assert gateway.lines_with("mode wsgi for flasked:application")
    stub.set(latency=600)
    urls = [f"{stub.url}/shipping/quote?grams={grams}" for grams in (100, 200, 300)]
    connection = await Connection.open(gateway.address)
    answer = await connection.ask("POST", "/both", JSON, json.dumps({"urls": urls}).encode())
    assert [quote["price"] for quote in answer.json()] == ["4.00", "4.10", "4.20"]
    assert answer.seconds < 1.5  # one after the other would take 1.8
    assert stub.counts()["most_held"] == 3


@story(60)
async def test_what_a_flask_app_does_after_its_answer_waits_in_place(
    stub: Services, start: Starter
) -> None:
    gateway = start(TO_THE_STUB, app="flasked", flags=("--slots=4", "--processes=1"))
    (before,) = gateway.status()["processes"]
    stub.set(latency=400)
    asking = {"url": f"{stub.url}/shipping/quote?grams=100"}
    for _ in range(3):
        connection = await Connection.open(gateway.address)
        answer = await connection.ask("POST", "/after", JSON, json.dumps(asking).encode())
        assert (answer.status, answer.body) == (200, b"answered")
        assert answer.seconds < 0.4
    gateway.settles(4)
    assert gateway.metric("layby_waits_in_place_total", reason="mode") == 3
    assert gateway.metric("layby_fetches_total", outcome="ok") == 3
    (after,) = gateway.status()["processes"]
    assert after["pid"] == before["pid"]
