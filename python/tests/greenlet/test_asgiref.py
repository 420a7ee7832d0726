"""`async_to_sync` by hand in greenlet mode: nothing parks while its event loop waits."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from stories import Start, app, go_on, hold, park, resume, text

import layby
from layby import _asgiref


@pytest.fixture(autouse=True)
def _installed() -> None:
    _asgiref.install_lent_jobs()


def blocking() -> float:
    return layby.sleep(1).result()


def test_what_the_loop_calls_on_the_slot_s_thread_waits_in_place(start: Start) -> None:
    """Parked, it would share the channel with the loop, which waits in place for its own."""

    async def both() -> list[float]:
        async def on_loop() -> float:
            return await layby.sleep(1)

        return await asyncio.gather(sync_to_async(blocking)(), on_loop())

    [slot] = start(app(lambda environ: repr(async_to_sync(both)()).encode()))
    slot.request(1)
    for _ in range(2):
        assert hold(slot, 1)["reason"] == "unsupported"
        assert slot.quiet(0.05)
        go_on(slot, 1)
    assert text(slot) == "[1.0, 1.0]"


def test_every_request_has_a_loop_of_its_own(start: Start) -> None:
    """One that is parked must not leave its loop to others on this thread."""

    async def called() -> str:
        await sync_to_async(blocking)()
        return threading.current_thread().name

    def view(environ: dict[str, Any]) -> bytes:
        name = async_to_sync(called)()
        # Its loop has ended: this parks again.
        blocking()
        return name.encode()

    [slot] = start(app(view))
    for request in (1, 2):
        slot.request(request)
        assert hold(slot, request)["reason"] == "unsupported"
        go_on(slot, request)
        park(slot, request)
    names = []
    for request in (1, 2):
        resume(slot, request)
        names.append(text(slot))
    assert names[0] != names[1]
