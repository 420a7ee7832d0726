"""Tests that are coroutines, told within a time."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import Any

from support.client import Connection


def story(seconds: float) -> Callable[[Callable[..., Awaitable[None]]], Callable[..., None]]:
    """Runs the test on an event loop of its own, and closes what connections it left open."""

    def decorate(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
        @functools.wraps(test)
        def told(**fixtures: Any) -> None:
            async def tell() -> None:
                try:
                    async with asyncio.timeout(seconds):
                        await test(**fixtures)
                finally:
                    # Clients that a failed test left alone would only add to its report.
                    left = asyncio.all_tasks() - {asyncio.current_task()}
                    for task in left:
                        task.cancel()
                    await asyncio.gather(*left, return_exceptions=True)
                    await Connection.end_all()

            asyncio.run(tell())

        return told

    return decorate


async def eventually(what: str, check: Callable[[], Any], seconds: float) -> Any:
    """Ask until the answer is true, on another thread so that clients go on; the answer."""
    try:
        async with asyncio.timeout(seconds):
            while not (answer := await asyncio.to_thread(check)):
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"after {seconds:g} s: {what}") from None
    return answer
