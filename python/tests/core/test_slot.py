"""What a slot does with frames, good and bad, apart from the application."""

from __future__ import annotations

import os
from typing import Any

import pytest
from conftest import Start
from fakegateway import FD, READY, Connection, response
from test_coroutine import app, park, sleeper

from layby import _job


def hello(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", [])
    return [environ["wsgi.input"].read() or b"hello"]


@pytest.fixture
def closings() -> Any:
    """Closers of slots, as layby.django has them for its connections."""
    events: list[str] = []
    closer = lambda: events.append("closed")  # noqa: E731
    _job.slot_closers.append(closer)
    yield events
    _job.slot_closers.remove(closer)


def test_a_retired_slot_closes_what_it_holds_before_it_says_so(
    start: Start, closings: list[str]
) -> None:
    [slot] = start(hello)
    slot.request(1)
    slot.answer()
    assert closings == []
    slot.send("RETIRE")
    slot.expect("RETIRED")
    assert closings == ["closed"]
    assert slot.closed()


def test_a_slot_that_cannot_close_does_not_say_that_it_did(
    start: Start, closings: list[str]
) -> None:
    def broken() -> None:
        raise OSError("still open")

    _job.slot_closers.insert(0, broken)
    try:
        [slot] = start(hello)
        slot.send("RETIRE")
        assert slot.closed()
    finally:
        _job.slot_closers.remove(broken)
    assert closings == ["closed"]


def test_a_slot_opens_and_closes_on_its_own_thread_even_if_opening_fails(
    start: Start, closings: list[str]
) -> None:
    numbers: list[int] = []

    def opener(number: int) -> None:
        numbers.append(number)
        raise OSError("the database is down")

    _job.slot_openers.append(opener)
    try:
        one, two = start(hello, slots=2)
    finally:
        _job.slot_openers.remove(opener)
    assert sorted(numbers) == [0, 1]
    for slot in (one, two):
        slot.request(1)
        assert slot.answer()[1] == b"hello"
        slot.close()


def test_a_body_comes_in_the_frame_or_as_a_file(start: Start) -> None:
    [slot] = start(hello)
    before = len(os.listdir("/proc/self/fd"))
    for request in range(20):
        slot.request(request, body=b"in the frame")
        assert slot.answer()[1] == b"in the frame"
        slot.request(request, file=b"in a file" * 20_000)
        frame = slot.expect("ANSWER")
        assert frame.flags & READY
        assert frame.body == b"in a file" * 20_000
    slot.request(99)
    slot.answer()
    assert len(os.listdir("/proc/self/fd")) <= before + 1


def test_a_file_may_follow_a_late_stop_in_one_piece(start: Start) -> None:
    [slot] = start(hello)
    slot.request(1)
    slot.answer()
    stop = bytes([0x15, 0, 0, 0]) + bytes(8) + (1).to_bytes(8, "big") + bytes(4)
    slot.request(2, file=b"in a file", glued=stop)
    assert slot.answer()[1] == b"in a file"


def nonsense(slot: Connection, kind: str) -> None:
    match kind:
        case "a frame of workers":
            slot.send("READY", request=1)
        case "no frame":
            slot.socket.sendall(b"\xff" * 24)
        case "a resume of nothing":
            slot.results("RESUME", 99, 1, {"slept": 1.0})
        case "an epoch too many":
            slot.results("RESUME", 1, 2, {"slept": 1.0})
        case "the epoch of before":
            slot.results("RESUME", 1, 0, {"slept": 1.0})
        case "a cancel of nothing":
            slot.send("CANCEL", request=99, epoch=1)
        case "results that are no JSON":
            slot.send("RESUME", request=1, epoch=1, head=b"{")
        case "results of unknown kinds":
            slot.results("RESUME", 1, 1, {"slumbered": 1.0})
        case "a response beyond its bytes":
            slot.results("RESUME", 1, 1, response(b"abc"), body=b"ab")
        case "a flag for a file that is not there":
            slot.send("REQUEST", flags=FD, request=2)
        case "a file without its flag":
            slot.send("STOP", file=b"x", flagged=False)
        case "a request cut short":
            slot.request(2, body=b"abc", CONTENT_LENGTH="4")
        case "a file cut short":
            slot.request(2, file=b"abc", CONTENT_LENGTH="4")
        case "a forged number of pairs":
            slot.send("REQUEST", request=2, aux=1, head=b"PATH_INFO\0/\0REMOTE_USER\0admin\0")
        case "results for an idle slot":
            slot.results("RESULTS", 1, 1, {"slept": 1.0})


@pytest.mark.parametrize(
    "kind",
    [
        "a frame of workers",
        "no frame",
        "a resume of nothing",
        "an epoch too many",
        "the epoch of before",
        "a cancel of nothing",
        "results that are no JSON",
        "results of unknown kinds",
        "a response beyond its bytes",
        "a flag for a file that is not there",
        "a file without its flag",
        "a request cut short",
        "a file cut short",
        "a forged number of pairs",
        "results for an idle slot",
    ],
)
def test_nonsense_ends_the_slot_and_no_other(
    start: Start, caplog: pytest.LogCaptureFixture, closings: list[str], kind: str
) -> None:
    one, two = start(app(sleeper), mode="coroutine", slots=2)
    one.request(1)
    park(one, 1)
    nonsense(one, kind)
    assert one.closed()
    assert closings == ["closed"]
    assert "slot 0: the gateway sent what it must not" in caplog.text
    two.request(3)
    park(two, 3)
    two.results("RESUME", 3, 1, {"slept": 0.5})
    assert two.answer()[1] == b"0.5"


@pytest.mark.parametrize("epoch", [0, 2])
def test_a_parked_request_survives_a_resume_of_the_wrong_epoch(start: Start, epoch: int) -> None:
    one, two = start(app(sleeper), mode="coroutine", slots=2)
    one.request(1)
    park(one, 1)
    one.results("RESUME", 1, epoch, {"slept": 1.0})
    assert one.closed()
    two.results("RESUME", 1, 1, {"slept": 0.5})
    assert two.answer()[1] == b"0.5"


def test_a_wait_in_place_that_is_answered_with_nonsense_ends_the_request(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    import layby

    events = []

    def waits(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        try:
            layby.sleep(1).result()
        except Exception:
            events.append("taken for a failure")
        finally:
            events.append("finally")
        return []

    [slot] = start(waits)
    slot.request(1)
    slot.expect("HOLD")
    slot.results("RESULTS", 1, 5, {"slept": 1.0})
    while not slot.closed():
        pass
    assert events == ["finally"]
    assert "lost while waiting in place or parking" in caplog.text


def test_a_refused_slot_ends(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    [slot] = start(hello)
    slot.send("REFUSED", head=b"unknown key")
    assert slot.closed()
    assert "slot 0: refused by the gateway: unknown key" in caplog.text


def test_a_gateway_that_goes_away_in_the_middle_of_a_body_ends_the_slot(
    start: Start, closings: list[str]
) -> None:
    closed = []

    def endless(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [])
        try:
            while True:
                yield b"x" * 100_000
        finally:
            closed.append(True)

    [slot] = start(endless)
    slot.request(1)
    slot.expect("ANSWER")
    slot.close()
    # The fixture waits for the thread's end; this for what it does before.
    for _ in range(200):
        if closings:
            break
        os.sched_yield()
        import time

        time.sleep(0.01)
    assert closed == [True]
    assert closings == ["closed"]
