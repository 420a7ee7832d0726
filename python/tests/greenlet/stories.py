"""What the tests say of requests: how they park, wait in place and go on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from fakegateway import Connection

import layby

SLEPT = {"slept": 1.0}
# Flag PINNED of a PARK.
PINNED = 0x20

Start = Callable[..., list[Connection]]
View = Callable[[dict[str, Any]], bytes]


def app(view: View) -> Any:
    """A WSGI application that answers what the view returns."""

    def run(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        body = view(environ)
        start_response("200 OK", [])
        return [body]

    return run


def park(slot: Connection, request: int, epoch: int = 0, *, flags: int = PINNED) -> Any:
    """Expects that a request parks, to go on on the same slot; its plan."""
    frame = slot.expect("PARK")
    assert (frame.request, frame.epoch, frame.flags) == (request, epoch, flags)
    return frame.plan


def parks(slot: Connection, request: int, mode: str) -> None:
    """Expects that a request parks, as it does in this mode."""
    park(slot, request, flags=PINNED if mode == "greenlet" else 0)


def hold(slot: Connection, request: int, epoch: int = 0) -> Any:
    """Expects that a request waits in place; why."""
    frame = slot.expect("HOLD")
    assert (frame.request, frame.epoch) == (request, epoch)
    return frame.plan["hold"]


def resume(slot: Connection, request: int, epoch: int = 1) -> None:
    """Lets a request go on that slept."""
    slot.results("RESUME", request, epoch, SLEPT)


def go_on(slot: Connection, request: int, epoch: int = 0) -> None:
    """Lets a request go on that waits in place."""
    slot.results("RESULTS", request, epoch, SLEPT)


def text(slot: Connection) -> str:
    """The whole answer that a slot sends now."""
    return slot.answer()[1].decode()


class Answer:
    """What a coroutine application returns."""

    status = "200 OK"
    quick_close = True

    def __init__(self, body: bytes) -> None:
        self.headers: list[tuple[str, str]] = []
        self._body = body

    def __iter__(self) -> Iterator[bytes]:
        return iter((self._body,))

    def close(self) -> None: ...


def around_a_sleep(
    mode: str, before: Callable[[dict[str, Any]], object], after: Callable[[Any], bytes]
) -> Any:
    """An application for this mode: `before`, a sleep, and `after` with what before returned."""

    def call(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        state = before(environ)
        layby.sleep(1).result()
        body = after(state)
        start_response("200 OK", [])
        return [body]

    async def coroutine(environ: dict[str, Any]) -> Answer:
        state = before(environ)
        await layby.sleep(1)
        return Answer(after(state))

    return call if mode == "greenlet" else coroutine
