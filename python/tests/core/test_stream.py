"""Answers of asynchronous generators, which park between their pieces."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

import pytest
from conftest import Start
from fakegateway import BROKEN, LOCAL, MORE, READY, Connection
from test_coroutine import Answer, park, thread_number
from test_io import leaves, resume, run_call, wanted

import layby
from layby import _stream

Pieces = Callable[[], AsyncGenerator[bytes, None]]


class Streamed(Answer):
    """An answer whose body is an asynchronous generator."""

    def __init__(self, pieces: AsyncGenerator[bytes, None], *headers: tuple[str, str]) -> None:
        super().__init__(quick=False)
        self.headers = list(headers)
        self._pieces = pieces

    def stream(self) -> AsyncGenerator[bytes, None]:
        return self._pieces


def app(pieces: Pieces, *headers: tuple[str, str]) -> tuple[Any, list[Streamed]]:
    answers: list[Streamed] = []

    async def run(environ: dict[str, Any]) -> Streamed:
        answers.append(Streamed(pieces(), *headers))
        return answers[-1]

    return run, answers


def piece(slot: Connection, request: int, epoch: int, body: bytes, kind: str = "BODY") -> None:
    frame = slot.expect(kind)
    assert (frame.request, frame.epoch, frame.flags, frame.body) == (request, epoch, MORE, body)


def ends(slot: Connection, request: int, epoch: int) -> None:
    frame = slot.expect("BODY")
    assert (frame.request, frame.epoch, frame.flags, frame.body) == (request, epoch, 0, b"")
    ready = slot.expect("READY")
    assert (ready.request, ready.epoch) == (request, epoch)


def test_a_generator_parks_between_its_pieces(start: Start) -> None:
    async def pieces() -> AsyncGenerator[bytes, None]:
        yield f"one {thread_number()}".encode()
        await layby.sleep(1)
        yield f"two {thread_number()}".encode()
        await layby.sleep(1)
        await layby.sleep(1)
        yield f"three {thread_number()}".encode()

    run, answers = app(pieces)
    one, two = start(run, mode="coroutine", slots=2)
    one.request(1)
    # Each piece is sent at once, and while there is none the slot serves others.
    piece(one, 1, 0, b"one 0", "ANSWER")
    park(one, 1)
    one.request(2)
    piece(one, 2, 0, b"one 0", "ANSWER")
    park(one, 2)
    two.results("RESUME", 1, 1, {"slept": 1.0})
    piece(two, 1, 1, b"two 1")
    park(two, 1, 1)
    one.results("RESUME", 1, 2, {"slept": 1.0})
    park(one, 1, 2)
    two.results("RESUME", 1, 3, {"slept": 1.0})
    piece(two, 1, 3, b"three 1")
    ends(two, 1, 3)
    assert answers[0].closed
    assert not answers[1].closed


def test_the_head_leaves_before_the_first_wait(start: Start) -> None:
    async def pieces() -> AsyncGenerator[bytes, None]:
        await layby.sleep(1)
        yield b"late"

    run, _ = app(pieces, ("Content-Type", "text/event-stream"))
    [slot] = start(run, mode="coroutine")
    slot.request(1)
    head = slot.expect("ANSWER")
    assert (head.aux, head.flags, head.body) == (200, MORE, b"")
    assert head.headers == [("Content-Type", "text/event-stream")]
    park(slot, 1)
    slot.results("RESUME", 1, 1, {"slept": 1.0})
    piece(slot, 1, 1, b"late")
    ends(slot, 1, 1)


def test_a_stream_that_never_waits_is_one_step(start: Start) -> None:
    async def pieces() -> AsyncGenerator[bytes, None]:
        for number in range(3):
            yield str(number).encode()

    run, answers = app(pieces, ("Content-Length", "3"))
    [slot] = start(run, mode="coroutine")
    slot.request(1)
    assert slot.answer()[1] == b"012"
    assert answers[0].closed


def test_a_client_that_leaves_while_it_is_parked_closes_the_generator_in_a_slot(
    start: Start,
) -> None:
    events: list[str] = []

    async def pieces() -> AsyncGenerator[bytes, None]:
        try:
            yield b"one"
            await layby.sleep(60)
        finally:
            events.append(f"closed on {thread_number()}")
            # Where a request is being ended it waits in place.
            await layby.sleep(2)

    run, answers = app(pieces)
    one, two = start(run, mode="coroutine", slots=2)
    one.request(1)
    piece(one, 1, 0, b"one", "ANSWER")
    park(one, 1)
    two.send("CANCEL", request=1, epoch=1)
    hold = two.expect("HOLD")
    assert (hold.request, hold.epoch) == (1, 1)
    two.results("RESULTS", 1, 1, {"slept": 2.0})
    broken = two.expect("BODY")
    assert (broken.epoch, broken.flags) == (1, BROKEN)
    assert two.expect("READY").epoch == 1
    assert events == ["closed on 1"]
    assert answers[0].closed


def test_a_client_that_leaves_while_it_is_sent_closes_the_generator(start: Start) -> None:
    begun, go_on = threading.Event(), threading.Event()
    events: list[str] = []

    async def pieces() -> AsyncGenerator[bytes, None]:
        try:
            yield b"one"
            begun.set()
            go_on.wait(20)
            yield b"two"
            events.append("unreachable")
        finally:
            await asyncio_free_cleanup(events)

    async def asyncio_free_cleanup(events: list[str]) -> None:
        await layby.sleep(1)
        events.append("closed")

    run, answers = app(pieces)
    [slot] = start(run, mode="coroutine")
    slot.request(1)
    piece(slot, 1, 0, b"one", "ANSWER")
    assert begun.wait(20)
    slot.send("STOP", request=1, epoch=0)
    go_on.set()
    assert slot.expect("BODY").flags == BROKEN
    # The answer is over, so this cannot park in its middle any more.
    assert slot.expect("HOLD").plan["gather"] == [{"sleep": 1.0}]
    slot.results("RESULTS", 1, 0, {"slept": 1.0})
    slot.expect("READY")
    assert events == ["closed"]
    assert answers[0].closed


def test_a_failure_in_the_middle_is_a_visible_cut(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    async def pieces() -> AsyncGenerator[bytes, None]:
        yield b"one"
        await layby.sleep(1)
        raise ValueError("in the middle")

    run, answers = app(pieces)
    [slot] = start(run, mode="coroutine")
    slot.request(1)
    piece(slot, 1, 0, b"one", "ANSWER")
    park(slot, 1)
    slot.results("RESUME", 1, 1, {"slept": 1.0})
    assert slot.expect("BODY").flags == BROKEN
    slot.expect("READY")
    assert "in the middle" in caplog.text
    assert answers[0].closed


def test_a_failure_before_the_first_wait_is_a_500(start: Start) -> None:
    async def pieces() -> AsyncGenerator[bytes, None]:
        raise ValueError("at once")
        yield b"unreachable"

    run, answers = app(pieces)
    [slot] = start(run, mode="coroutine")
    slot.request(1)
    assert slot.answer()[0].aux == 500
    assert answers[0].closed


def test_a_head_request_makes_no_pieces_beyond_the_first(start: Start) -> None:
    made: list[int] = []

    async def pieces() -> AsyncGenerator[bytes, None]:
        for number in range(3):
            made.append(number)
            yield b"x"

    run, answers = app(pieces)
    [slot] = start(run, mode="coroutine")
    slot.request(1, REQUEST_METHOD="HEAD")
    assert slot.answer()[1] == b""
    assert made == [0]
    assert answers[0].closed


# --- pieces made on the loop ---


async def ticks(events: list[str], count: int = 3) -> AsyncGenerator[bytes, None]:
    """A generator inside `io` from its first piece to its last, as one that relays a feed is."""
    tasks = set()
    try:
        async with layby.io:
            try:
                async with asyncio.timeout(60):
                    for number in range(count):
                        tasks.add(asyncio.current_task())
                        await asyncio.sleep(0)
                        yield f"{number} ".encode()
            finally:
                await asyncio.sleep(0)
                events.append(f"{threading.current_thread().name} {len(tasks)}")
    finally:
        events.append(threading.current_thread().name)


def test_a_generator_inside_io_sends_its_pieces_from_slots(
    start: Start, control: Connection
) -> None:
    events: list[str] = []
    run, answers = app(lambda: ticks(events))
    slots = start(run, mode="coroutine", slots=2)
    slots[0].request(1)
    head = slots[0].expect("ANSWER")
    assert (head.flags, head.body) == (MORE, b"")
    for epoch in range(3):
        leaves(slots[epoch % 2], 1, epoch)
        wanted(control, 1, epoch)
        resume(slots[(epoch + 1) % 2], 1, epoch + 1)
        piece(slots[(epoch + 1) % 2], 1, epoch + 1, f"{epoch} ".encode())
    # Once more to find that there are no more.
    leaves(slots[1], 1, 3)
    wanted(control, 1, 3)
    resume(slots[0], 1, 4)
    ends(slots[0], 1, 4)
    # One task all along, so that its timeout works across the pieces.
    assert events == ["layby-loop 1", "slot-0"]
    assert answers[0].closed


def test_a_timeout_works_across_the_pieces(start: Start, control: Connection) -> None:
    expired = threading.Event()

    async def pieces() -> AsyncGenerator[bytes, None]:
        async with layby.io:
            try:
                async with asyncio.timeout(0.05) as timeout:
                    asyncio.get_running_loop().call_later(0.1, expired.set)
                    yield b"one"
                    await asyncio.sleep(60)
            except TimeoutError:
                yield f"{timeout.expired()}".encode()

    run, _ = app(pieces)
    [slot] = start(run, mode="coroutine")
    slot.request(1)
    slot.expect("ANSWER")
    leaves(slot, 1)
    wanted(control, 1)
    # It expires while the generator is not on the loop.
    assert expired.wait(20)
    resume(slot, 1, 1)
    piece(slot, 1, 1, b"one")
    leaves(slot, 1, 1)
    wanted(control, 1, 1)
    resume(slot, 1, 2)
    piece(slot, 1, 2, b"True")
    leaves(slot, 1, 2)
    wanted(control, 1, 2)
    resume(slot, 1, 3)
    ends(slot, 1, 3)


@pytest.mark.parametrize("when", ["aboard", "landing"])
def test_a_client_that_leaves_closes_the_generator_on_the_loop(
    start: Start, control: Connection, when: str
) -> None:
    events: list[str] = []
    waits = threading.Event()

    async def endless() -> AsyncGenerator[bytes, None]:
        try:
            async with layby.io:
                try:
                    yield b"one"
                    waits.set()
                    await asyncio.sleep(60)
                finally:
                    await asyncio.sleep(0)
                    events.append(threading.current_thread().name)
        finally:
            events.append(threading.current_thread().name)

    run, answers = app(endless)
    one, two = start(run, mode="coroutine", slots=2)
    one.request(1)
    one.expect("ANSWER")
    leaves(one, 1)
    wanted(control, 1)
    if when == "aboard":
        resume(one, 1, 1)
        piece(one, 1, 1, b"one")
        leaves(one, 1, 1)
        assert waits.wait(20)
        two.send("CANCEL", request=1, epoch=2)
    else:
        two.send("CANCEL", request=1, epoch=1)
        # The generator has a piece to send, and is closed where it can be: aboard.
        hold = two.expect("HOLD")
        assert (hold.epoch, hold.flags) == (1, LOCAL)
    assert two.expect("BODY").flags == BROKEN
    two.expect("READY")
    assert events == ["layby-loop", "slot-1"]
    assert answers[0].closed


def test_calls_of_child_tasks_wait_until_the_generator_is_aboard_again(
    start: Start, control: Connection
) -> None:
    sending = threading.Event()

    async def pieces() -> AsyncGenerator[bytes, None]:
        async with layby.io, asyncio.TaskGroup() as group:

            async def calls() -> int:
                await asyncio.to_thread(sending.wait)
                return await layby.in_slot(thread_number)

            child = group.create_task(calls())
            yield b"one"
            yield f"{await child}".encode()

    run, _ = app(pieces)
    one, two = start(run, mode="coroutine", slots=2)
    one.request(1)
    one.expect("ANSWER")
    leaves(one, 1)
    wanted(control, 1)
    sending.set()
    assert control.quiet()
    resume(one, 1, 1)
    piece(one, 1, 1, b"one")
    leaves(one, 1, 1)
    run_call(two, control, 1, 1)
    two.expect("READY")
    wanted(control, 1, 1)
    resume(one, 1, 2)
    piece(one, 1, 2, b"1")
    leaves(one, 1, 2)
    wanted(control, 1, 2)
    resume(one, 1, 3)
    ends(one, 1, 3)


# --- in place ---


def test_in_place_pieces_are_made_by_who_asks_for_them() -> None:
    events: list[str] = []
    name = threading.current_thread().name
    assert list(_stream.in_place(ticks(events))) == [b"0 ", b"1 ", b"2 "]
    assert events == ["layby-loop 1", name]


def test_in_place_a_stream_that_is_closed_is_closed_on_the_loop() -> None:
    events: list[str] = []
    pieces: Any = _stream.in_place(ticks(events))
    assert next(pieces) == b"0 "
    pieces.close()
    assert events == ["layby-loop 1", threading.current_thread().name]


def test_in_place_foreign_awaitables_are_refused() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"one"
        try:
            await asyncio.sleep(0)
        except layby.Error as error:
            yield str(error).encode()

    one, error = _stream.in_place(pieces())  # type: ignore[arg-type]
    assert one == b"one"
    assert b"`async with layby.io:`" in error


def test_the_pieces_of_a_fast_stream_end_with_ready(start: Start) -> None:
    async def pieces() -> AsyncGenerator[bytes, None]:
        yield b"one"

    run, _ = app(pieces)
    [slot] = start(run, mode="coroutine")
    for request in (1, 2):
        slot.request(request)
        frame, body = slot.answer()
        assert (body, frame.flags & READY) == (b"one", 0)
