"""`layby.on_park` and `layby.on_resume`, in both modes that park."""

from __future__ import annotations

import contextvars
import threading
from typing import Any

import pytest
from stories import Start, around_a_sleep, go_on, hold, parks, resume, text

import layby
from layby import _job
from layby._job import Obstacle

pytestmark = pytest.mark.usefixtures("hooks")

WHO = contextvars.ContextVar("who", default="nobody")
SCHEMA = threading.local()


def carries_the_schema() -> None:
    """The hooks of an application that keeps a tenant by thread, as a connection would."""

    @layby.on_park
    def leave(environ: dict[str, Any]) -> None:
        del SCHEMA.name

    @layby.on_resume
    def enter(environ: dict[str, Any]) -> None:
        SCHEMA.name = WHO.get() + environ["QUERY_STRING"]


def begins(environ: dict[str, Any]) -> str:
    assert not hasattr(SCHEMA, "name")
    WHO.set(environ["PATH_INFO"])
    SCHEMA.name = environ["PATH_INFO"] + environ["QUERY_STRING"]
    return str(SCHEMA.name)


def ends(name: str) -> bytes:
    try:
        return f"{name} {SCHEMA.name}".encode()
    finally:
        del SCHEMA.name


@pytest.mark.parametrize("mode", ["greenlet", "coroutine"])
def test_they_run_with_the_environ_on_the_slot_in_the_context(start: Start, mode: str) -> None:
    carries_the_schema()
    [slot] = start(around_a_sleep(mode, begins, ends), mode=mode)
    for request in range(1, 11):
        slot.request(request, f"/{request}", QUERY_STRING=f"q{request}")
        parks(slot, request, mode)
    for request in reversed(range(1, 11)):
        resume(slot, request)
        assert text(slot) == f"/{request}q{request} /{request}q{request}"


@pytest.mark.parametrize("mode", ["greenlet", "coroutine"])
def test_they_do_not_run_for_a_wait_in_place(start: Start, mode: str) -> None:
    calls: list[str] = []
    layby.on_park(lambda environ: calls.append("park"))
    layby.on_resume(lambda environ: calls.append("resume"))
    check = [Obstacle("transaction", "always")]
    _job.park_checks.append(lambda job: check[0])
    try:
        [slot] = start(around_a_sleep(mode, lambda environ: "x", str.encode), mode=mode)
        slot.request(1)
        assert hold(slot, 1)["reason"] == "transaction"
        go_on(slot, 1)
        assert text(slot) == "x"
    finally:
        _job.park_checks.pop()
    assert calls == []


@pytest.mark.parametrize("mode", ["greenlet", "coroutine"])
def test_state_that_cannot_be_put_away_waits_in_place(
    start: Start, mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    carries_the_schema()

    @layby.on_park
    def fails(environ: dict[str, Any]) -> None:
        raise ConnectionError("the database is gone")

    [slot] = start(around_a_sleep(mode, begins, ends), mode=mode)
    slot.request(1, "/1")
    assert hold(slot, 1)["reason"] == "unsupported"
    assert "fails failed: ConnectionError('the database is gone')" in caplog.text
    go_on(slot, 1)
    # What the first hook put away is back.
    assert text(slot) == "/1 /1"


@pytest.mark.parametrize("mode", ["greenlet", "coroutine"])
def test_a_hook_that_begins_a_transaction_keeps_the_request_from_parking(
    start: Start, mode: str
) -> None:
    begun: list[Obstacle] = []
    _job.park_checks.append(lambda job: begun[0] if begun else None)
    layby.on_park(lambda environ: begun.append(Obstacle("transaction", "begun by the hook")))
    try:
        [slot] = start(around_a_sleep(mode, lambda environ: "x", str.encode), mode=mode)
        slot.request(1)
        assert hold(slot, 1)["reason"] == "transaction"
        go_on(slot, 1)
        assert text(slot) == "x"
    finally:
        _job.park_checks.pop()


@pytest.mark.parametrize("mode", ["greenlet", "coroutine"])
def test_state_that_cannot_be_brought_back_ends_the_request_with_500(
    start: Start, mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[str] = []

    @layby.on_resume
    def fails(environ: dict[str, Any]) -> None:
        raise LookupError("no such tenant")

    def call(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        try:
            layby.sleep(1).result()
        except Exception:
            seen.append("went on with the wrong tenant")
        finally:
            seen.append("finally")
        start_response("200 OK", [])
        return [b"?"]

    async def coroutine(environ: dict[str, Any]) -> Any:
        try:
            await layby.sleep(1)
        except Exception:
            seen.append("went on with the wrong tenant")
        finally:
            seen.append("finally")

    [slot] = start(call if mode == "greenlet" else coroutine, mode=mode)
    for request in (1, 2):
        slot.request(request)
        parks(slot, request, mode)
        resume(slot, request)
        assert slot.answer()[0].aux == 500
    assert seen == ["finally"] * 2
    assert "LookupError: no such tenant" in caplog.text


@pytest.mark.parametrize("mode", ["greenlet", "coroutine"])
def test_a_request_that_is_ended_has_its_state_in_finally(start: Start, mode: str) -> None:
    carries_the_schema()
    seen: list[str] = []

    def call(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        begins(environ)
        try:
            layby.sleep(1).result()
        finally:
            seen.append(ends("finally").decode())
        return []

    async def coroutine(environ: dict[str, Any]) -> Any:
        begins(environ)
        try:
            await layby.sleep(1)
        finally:
            seen.append(ends("finally").decode())

    [slot] = start(call if mode == "greenlet" else coroutine, mode=mode)
    slot.request(1, "/1")
    parks(slot, 1, mode)
    slot.send("CANCEL", request=1, epoch=1)
    slot.expect("READY")
    assert seen == ["finally /1"]
