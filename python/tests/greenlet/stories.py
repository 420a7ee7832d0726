"""What the tests say of requests: how they park, wait in place and go on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fakegateway import Connection

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


def park(slot: Connection, request: int, epoch: int = 0) -> Any:
    """Expects that a request parks, to go on on the same slot; its plan."""
    frame = slot.expect("PARK")
    assert (frame.request, frame.epoch) == (request, epoch)
    assert frame.flags & PINNED
    return frame.plan


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
