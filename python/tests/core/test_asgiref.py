"""`async_to_sync` by hand: a loop on a thread of its own, with the job lent to it."""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from conftest import Start
from fakegateway import Connection, response

import layby
from layby import _asgiref


@pytest.fixture(autouse=True)
def _installed() -> None:
    _asgiref.install_lent_jobs()


def app(view: Any) -> Any:
    """A WSGI application that answers what a coroutine function returns."""

    def run(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        body = async_to_sync(view)()
        start_response("200 OK", [])
        return [body]

    return run


def results(slot: Connection) -> str:
    """Answers the fetch that is waited for in place with its URL, which is returned."""
    hold = slot.expect("HOLD")
    url: str = hold.plan["gather"][0]["fetch"]["url"]
    body = url.encode()
    slot.results("RESULTS", hold.request, hold.epoch, response(body), body=body)
    return url


def test_one_below_another_leaves_the_job_lent(start: Start) -> None:
    """As with `await order.asave()` and a receiver of the signal that calls it in turn."""

    async def inner() -> str:
        return (await layby.get("http://inner/")).text

    async def view() -> bytes:
        below: str = await sync_to_async(async_to_sync(inner))()
        outer = await layby.get("http://outer/")
        return f"{below} {outer.text}".encode()

    [slot] = start(app(view))
    slot.request(1)
    assert results(slot) == "http://inner/"
    assert results(slot) == "http://outer/"
    assert slot.answer()[1] == b"http://inner/ http://outer/"


async def fetched(url: str) -> str:
    return (await layby.get(url)).text


def test_the_slot_s_thread_and_the_loop_s_wait_in_turn(start: Start) -> None:
    """Each would take the other's results otherwise: the names in them are the same."""

    def blocking() -> str:
        return layby.get("http://thread/").result().text

    async def view() -> bytes:
        both = await asyncio.gather(sync_to_async(blocking)(), fetched("http://loop/"))
        return " ".join(both).encode()

    [slot] = start(app(view))
    for request in range(1, 21):
        slot.request(request)
        assert {results(slot), results(slot)} == {"http://thread/", "http://loop/"}
        assert slot.answer()[1] == b"http://thread/ http://loop/"


@pytest.mark.parametrize("how", ["cancelled", "lost"])
def test_a_client_that_leaves_ends_the_waits_of_both(start: Start, how: str) -> None:
    ended: list[str] = []
    begun = threading.Barrier(2)

    def blocking() -> None:
        begun.wait(20)
        try:
            layby.sleep(5).result()
        except layby.Cancelled:
            ended.append("thread")
            raise

    async def view() -> bytes:
        below = asyncio.ensure_future(sync_to_async(blocking)())
        await asyncio.sleep(0)
        begun.wait(20)
        try:
            await layby.sleep(5)
        except layby.Cancelled:
            ended.append("loop")
        await below
        return b"unreachable"

    [slot] = start(app(view))
    slot.request(1)
    slot.expect("HOLD")
    assert slot.quiet()
    if how == "cancelled":
        slot.send("CANCEL", request=1)
    else:
        slot.socket.shutdown(socket.SHUT_WR)
    slot.expect("READY")
    assert sorted(ended) == ["loop", "thread"]
