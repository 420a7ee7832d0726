"""The id of the request in records of the application's own log."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from conftest import Start
from fakegateway import Connection
from test_coroutine import app, park
from test_io import leaves, resume, wanted

import layby


class Told(logging.Handler):
    """Keeps what it is told, as an application's handler would write it."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.addFilter(layby.RequestIdFilter())
        self.setFormatter(logging.Formatter("%(request_id)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@pytest.fixture
def log() -> Any:
    log = logging.getLogger("shop")
    told = Told()
    log.addHandler(told)
    log.told = told.lines  # type: ignore[attr-defined]
    yield log
    log.removeHandler(told)


def test_records_carry_the_id_of_their_request_over_a_park(start: Start, log: Any) -> None:
    async def view(environ: dict[str, Any]) -> bytes:
        log.warning("before")
        await layby.sleep(1)
        log.warning("after")
        return (layby.request_id() or "none").encode()

    one, two = start(app(view), mode="coroutine", slots=2)
    one.request(7, HTTP_X_REQUEST_ID="abc")
    park(one, 7)
    one.request(8, HTTP_X_REQUEST_ID="def")
    park(one, 8)
    two.results("RESUME", 7, 1, {"slept": 1.0})
    assert two.answer()[1] == b"abc"
    assert log.told == ["abc before", "def before", "abc after"]


def test_records_of_the_event_loop_carry_it_too(
    start: Start, control: Connection, log: Any
) -> None:
    async def child() -> None:
        log.warning("child")

    async def view(environ: dict[str, Any]) -> bytes:
        async with layby.io:
            log.warning("riding")
            await asyncio.gather(child())
        return b"done"

    [slot] = start(app(view), mode="coroutine")
    slot.request(7, HTTP_X_REQUEST_ID="abc")
    leaves(slot, 7)
    wanted(control, 7)
    resume(slot, 7, 1)
    assert slot.answer()[1] == b"done"
    assert log.told == ["abc riding", "abc child"]


def test_elsewhere_there_is_none(log: Any) -> None:
    assert layby.request_id() is None
    log.warning("on its own")
    log.warning("said already", extra={"request_id": "mine"})
    assert log.told == ["- on its own", "mine said already"]


def test_a_request_without_an_id_has_none(start: Start, log: Any) -> None:
    def view(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        log.warning("here")
        start_response("200 OK", [])
        return [repr(layby.request_id()).encode()]

    [slot] = start(view)
    slot.request(7)
    assert slot.answer()[1] == b"None"
    assert log.told == ["- here"]
