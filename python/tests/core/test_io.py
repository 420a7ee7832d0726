"""`async with layby.io`: off the slot, onto the event loop, and back to a slot."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import suppress
from typing import Any

import pytest
from conftest import Start
from fakegateway import LOCAL, SHIELDED, Connection
from test_coroutine import app, thread_number

import layby
from layby import _job, _loop, _ride
from layby._drive import drive
from layby._job import Obstacle, current_job

View = Callable[[dict[str, Any]], Coroutine[Any, Any, bytes]]


def leaves(slot: Connection, request: int, epoch: int = 0) -> None:
    """Expects that a request parks for the loop, with nothing for the gateway to do."""
    frame = slot.expect("PARK")
    assert (frame.request, frame.epoch, frame.flags) == (request, epoch, LOCAL)
    assert (frame.head, frame.body) == (b"", b"")


def wanted(control: Connection, request: int, epoch: int = 0) -> None:
    """Expects that a request wants to go on."""
    frame = control.expect("WANT")
    assert (frame.request, frame.epoch, frame.head, frame.body) == (request, epoch, b"", b"")


def resume(slot: Connection, request: int, epoch: int) -> None:
    slot.send("RESUME", request=request, epoch=epoch)


def test_a_block_runs_on_the_loop_and_the_next_line_on_a_slot(
    start: Start, control: Connection
) -> None:
    release: list[asyncio.Event] = []
    threads: list[str] = []

    async def view(environ: dict[str, Any]) -> bytes:
        threads.append(threading.current_thread().name)
        async with layby.io:
            threads.append(threading.current_thread().name)
            release.append(asyncio.Event())
            await release[0].wait()
            assert current_job() is None
        threads.append(threading.current_thread().name)
        assert current_job() is not None
        return b"done"

    one, two = start(app(view), mode="coroutine", slots=2)
    one.request(71)
    leaves(one, 71)
    # The slot is free for another request.
    one.request(72, glued=b"")
    leaves(one, 72)
    assert control.quiet()
    _loop.loop().call_soon_threadsafe(release[0].set)
    wanted(control, 71)
    resume(two, 71, 1)
    assert two.answer()[1] == b"done"
    assert threads[0] == "slot-0"
    assert threads[-1] == "slot-1"
    assert threads.count("layby-loop") == 2


async def ride_and_tell(inside: Callable[[], Awaitable[Any]]) -> bytes:
    async with layby.io:
        result = await inside()
    return f"{result} {thread_number()}".encode()


def answer_of(
    start: Start, control: Connection, view: View, *, rides: int = 1
) -> tuple[int, bytes]:
    """The answer to a request that rides a number of times, resumed on another slot each time."""
    slots = start(app(view), mode="coroutine", slots=2)
    slots[0].request(1)
    for epoch in range(rides):
        leaves(slots[epoch % 2], 1, epoch)
        wanted(control, 1, epoch)
        resume(slots[(epoch + 1) % 2], 1, epoch + 1)
    frame, body = slots[rides % 2].answer()
    return frame.aux, body


def test_the_task_is_one_of_asyncio_s(start: Start, control: Connection) -> None:
    async def inside() -> str:
        task = asyncio.current_task()
        await asyncio.sleep(0)
        assert task is asyncio.current_task()
        return type(task).__name__

    async def view(environ: dict[str, Any]) -> bytes:
        return await ride_and_tell(inside)

    assert answer_of(start, control, view) == (200, b"Task 1")


async def _timeout() -> str:
    try:
        async with asyncio.timeout(0.01):
            await asyncio.sleep(60)
    except TimeoutError:
        return "timeout"
    return "no timeout"


async def _gather() -> str:
    async def one(number: int) -> int:
        # Only the block's own task has commands for the ride; children must not.
        async with layby.io:
            await asyncio.sleep(0.001)
        return number

    return str(await asyncio.gather(one(1), one(2), one(3)))


async def _task_group() -> str:
    seen: list[int] = []

    async def one(number: int) -> None:
        await asyncio.sleep(0.001 * number)
        seen.append(number)

    async with asyncio.TaskGroup() as group:
        for number in (2, 1):
            group.create_task(one(number))
    return str(seen)


async def _nested() -> str:
    async with layby.io:
        async with layby.io:
            await asyncio.sleep(0)
        assert threading.current_thread().name == "layby-loop"
    return threading.current_thread().name


async def _anyio() -> str:
    anyio = pytest.importorskip("anyio")
    with anyio.move_on_after(0.01) as scope:
        await anyio.sleep(60)
    async with anyio.create_task_group() as group:
        group.start_soon(anyio.sleep, 0.001)
    return str(scope.cancelled_caught)


@pytest.mark.parametrize(
    ("inside", "result"),
    [
        (_timeout, "timeout"),
        (_gather, "[1, 2, 3]"),
        (_task_group, "[1, 2]"),
        (_nested, "layby-loop"),
        (_anyio, "True"),
    ],
)
def test_asyncio_works_inside_as_ever(
    start: Start, control: Connection, inside: Callable[[], Awaitable[str]], result: str
) -> None:
    async def view(environ: dict[str, Any]) -> bytes:
        return await ride_and_tell(inside)

    assert answer_of(start, control, view) == (200, f"{result} 1".encode())


def test_an_exception_of_the_block_is_caught_on_a_slot(start: Start, control: Connection) -> None:
    async def view(environ: dict[str, Any]) -> bytes:
        try:
            async with layby.io:
                await asyncio.sleep(0)
                raise ValueError("inside")
        except ValueError as error:
            return f"{error} {thread_number()}".encode()

    assert answer_of(start, control, view) == (200, b"inside 1")


def test_a_return_leaves_the_block(start: Start, control: Connection) -> None:
    async def inner() -> str:
        async with layby.io:
            await asyncio.sleep(0)
            return "returned"

    async def view(environ: dict[str, Any]) -> bytes:
        return f"{await inner()} {thread_number()}".encode()

    assert answer_of(start, control, view) == (200, b"returned 1")


@pytest.mark.parametrize("then_await", [True, False])
def test_a_task_that_cancels_itself_sees_that_on_a_slot(
    start: Start, control: Connection, then_await: bool
) -> None:
    async def view(environ: dict[str, Any]) -> bytes:
        try:
            async with layby.io:
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
                if then_await:
                    await asyncio.sleep(60)
        except asyncio.CancelledError:
            return f"cancelled {thread_number()}".encode()
        return b"not cancelled"

    assert answer_of(start, control, view) == (200, b"cancelled 1")


def test_a_cancelled_error_that_leaves_the_view_is_a_500(start: Start, control: Connection) -> None:
    async def view(environ: dict[str, Any]) -> bytes:
        async with layby.io:
            raise asyncio.CancelledError
        return b"unreachable"

    assert answer_of(start, control, view)[0] == 500


def test_blocks_follow_each_other(start: Start, control: Connection) -> None:
    async def view(environ: dict[str, Any]) -> bytes:
        tasks = set()
        for _ in range(3):
            async with layby.io:
                await asyncio.sleep(0)
                tasks.add(asyncio.current_task())
        return f"{len(tasks)} {thread_number()}".encode()

    assert answer_of(start, control, view, rides=3) == (200, b"3 1")


def test_context_variables_are_the_same_inside_and_after(start: Start, control: Connection) -> None:
    user = contextvars.ContextVar("user", default="nobody")

    async def view(environ: dict[str, Any]) -> bytes:
        token = user.set("before")
        seen = []
        async with layby.io:
            seen.append(user.get())
            user.set("inside")
            await asyncio.sleep(0)
            seen.append(user.get())
        seen.append(user.get())
        user.reset(token)
        seen.append(user.get())
        return " ".join(seen).encode()

    assert answer_of(start, control, view) == (200, b"before inside inside nobody")


def test_a_shielded_block_says_so(start: Start, control: Connection) -> None:
    async def view(environ: dict[str, Any]) -> bytes:
        with layby.shield():
            async with layby.io:
                await asyncio.sleep(0)
        return b"done"

    [slot] = start(app(view), mode="coroutine")
    slot.request(1)
    assert slot.expect("PARK").flags == LOCAL | SHIELDED
    wanted(control, 1)
    resume(slot, 1, 1)
    assert slot.answer()[1] == b"done"


def test_layby_s_own_things_are_refused_inside(start: Start, control: Connection) -> None:
    async def inside() -> str:
        messages = []
        for thing in (layby.sleep(1), layby.get("http://a.example/")):
            with pytest.raises(layby.Error) as caught:
                await thing
            messages.append(str(caught.value))
            with pytest.raises(layby.NotInASlot):
                thing.result()
        assert len(set(messages)) == 1
        return messages[0]

    async def view(environ: dict[str, Any]) -> bytes:
        return await ride_and_tell(inside)

    status, body = answer_of(start, control, view)
    assert status == 200
    assert b"use an asyncio client there" in body


def test_asyncio_around_the_block_names_the_block(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    async def view(environ: dict[str, Any]) -> bytes:
        async with asyncio.timeout(1), layby.io:
            pass
        return b"unreachable"

    [slot] = start(app(view), mode="coroutine")
    slot.request(1)
    assert slot.answer()[0].aux == 500
    assert "`async with layby.io:`" in caplog.text


# --- calls to slots ---


def run_call(slot: Connection, control: Connection, request: int, epoch: int = 0) -> None:
    """Serve one CALL on `slot`."""
    call = control.expect("CALL")
    assert (call.request, call.epoch) == (request, epoch)
    slot.send("RUN", request=request, epoch=epoch, aux=call.aux)


def test_in_slot_runs_a_function_on_any_slot(start: Start, control: Connection) -> None:
    user = contextvars.ContextVar("user", default="nobody")

    def blocking(who: str, *, how: str) -> str:
        job = current_job()
        assert job is not None
        seen = f"{user.get()} {who} {how} {thread_number()} {job.request}/{job.epoch}"
        user.set("changed")
        return seen

    async def view(environ: dict[str, Any]) -> bytes:
        user.set("ann")
        async with layby.io:
            seen = await layby.in_slot(blocking, "one", how="quick")
            seen += f" {user.get()}"
        return seen.encode()

    one, two = start(app(view), mode="coroutine", slots=2)
    one.request(7)
    leaves(one, 7)
    run_call(two, control, 7)
    ready = two.expect("READY")
    assert (ready.request, ready.epoch) == (7, 0)
    wanted(control, 7)
    resume(one, 7, 1)
    assert one.answer()[1] == b"ann one quick 1 7/0 changed"


def test_gathered_calls_run_side_by_side_on_their_slots(start: Start, control: Connection) -> None:
    together = threading.Barrier(3, timeout=20)

    def blocking() -> int:
        together.wait()
        return thread_number()

    async def view(environ: dict[str, Any]) -> bytes:
        async with layby.io:
            seen = await asyncio.gather(*(layby.in_slot(blocking) for _ in range(3)))
        return str(sorted(seen)).encode()

    slots = start(app(view), mode="coroutine", slots=3)
    slots[0].request(1)
    leaves(slots[0], 1)
    for slot in slots:
        run_call(slot, control, 1)
    for slot in slots:
        slot.expect("READY")
    wanted(control, 1)
    resume(slots[0], 1, 1)
    assert slots[0].answer()[1] == b"[0, 1, 2]"


def test_what_a_call_raises_is_raised_where_it_is_awaited(
    start: Start, control: Connection
) -> None:
    def fails(error: BaseException) -> None:
        raise error

    async def view(environ: dict[str, Any]) -> bytes:
        seen = []
        async with layby.io:
            for error in (KeyError("k"), StopIteration("s"), SystemExit(3)):
                try:
                    await layby.in_slot(fails, error)
                except BaseException as raised:
                    seen.append(repr(raised))
        return " ".join(seen).encode()

    [slot] = start(app(view), mode="coroutine")
    slot.request(1)
    leaves(slot, 1)
    for _ in range(3):
        run_call(slot, control, 1)
        slot.expect("READY")
    wanted(control, 1)
    resume(slot, 1, 1)
    seen = slot.answer()[1].decode()
    assert seen.startswith("KeyError('k') RuntimeError(")
    assert seen.endswith("SystemExit(3)")


def test_a_call_waits_in_place_for_layby_s_things(start: Start, control: Connection) -> None:
    def blocking() -> float:
        return layby.sleep(0.5).result()

    async def view(environ: dict[str, Any]) -> bytes:
        async with layby.io:
            return str(await layby.in_slot(blocking)).encode()

    one, two = start(app(view), mode="coroutine", slots=2)
    one.request(1)
    leaves(one, 1)
    run_call(two, control, 1)
    hold = two.expect("HOLD")
    assert (hold.request, hold.epoch, hold.plan["gather"]) == (1, 0, [{"sleep": 0.5}])
    two.results("RESULTS", 1, 0, {"slept": 0.5})
    two.expect("READY")
    wanted(control, 1)
    resume(one, 1, 1)
    assert one.answer()[1] == b"0.5"


def test_a_block_waits_for_the_calls_under_way_and_drops_the_others(
    start: Start, control: Connection
) -> None:
    begun, release = threading.Event(), threading.Event()

    def blocking() -> str:
        begun.set()
        release.wait(20)
        return "late"

    tasks: list[asyncio.Task[str]] = []

    async def view(environ: dict[str, Any]) -> bytes:
        async with layby.io:
            for _ in range(2):
                tasks.append(asyncio.create_task(layby.in_slot(blocking)))
            await asyncio.to_thread(begun.wait)
        return b"left"

    one, two = start(app(view), mode="coroutine", slots=2)
    one.request(1)
    leaves(one, 1)
    first, second = control.expect("CALL"), control.expect("CALL")
    two.send("RUN", request=1, epoch=0, aux=first.aux)
    # The block is over, one call is not.
    assert control.quiet()
    release.set()
    two.expect("READY")
    wanted(control, 1)
    # One that came too late: its slot is free at once.
    two.send("RUN", request=1, epoch=0, aux=second.aux)
    two.expect("READY")
    resume(one, 1, 1)
    assert one.answer()[1] == b"left"
    # The block waits for the calls, not for the tasks that await them.
    asyncio.run_coroutine_threadsafe(asyncio.wait(tasks), _loop.loop()).result(20)
    assert tasks[0].result() == "late"
    with pytest.raises(layby.Error, match="the request went on"):
        tasks[1].result()


def test_at_most_a_thousand_calls_are_asked_for_at_a_time(
    start: Start, control: Connection
) -> None:
    async def view(environ: dict[str, Any]) -> bytes:
        async with layby.io:
            numbers = await asyncio.gather(*(layby.in_slot(int, n) for n in range(1005)))
        return str(numbers == list(range(1005))).encode()

    [slot] = start(app(view), mode="coroutine")
    slot.request(1)
    leaves(slot, 1)
    calls = [control.expect("CALL").aux for _ in range(1000)]
    assert len(set(calls)) == 1000
    assert control.quiet()
    for number in range(1005):
        slot.send("RUN", request=1, epoch=0, aux=calls[number])
        slot.expect("READY")
        if number < 5:
            calls.append(control.expect("CALL").aux)
    wanted(control, 1)
    resume(slot, 1, 1)
    assert slot.answer()[1] == b"True"


def test_in_slot_on_a_slot_is_a_call(start: Start) -> None:
    async def view(environ: dict[str, Any]) -> bytes:
        return str(await layby.in_slot(thread_number)).encode()

    [slot] = start(app(view), mode="coroutine")
    slot.request(1)
    assert slot.answer()[1] == b"0"


def test_a_call_that_nobody_waits_for_any_more_does_not_begin(
    start: Start, control: Connection
) -> None:
    ran: list[str] = []

    async def view(environ: dict[str, Any]) -> bytes:
        async with layby.io:
            try:
                async with asyncio.timeout(0.01):
                    await layby.in_slot(ran.append, "too late")
            except TimeoutError:
                await layby.in_slot(ran.append, "in time")
        return b"done"

    one, two = start(app(view), mode="coroutine", slots=2)
    one.request(1)
    leaves(one, 1)
    late, early = control.expect("CALL"), control.expect("CALL")
    for call in (late, early):
        two.send("RUN", request=1, epoch=0, aux=call.aux)
        two.expect("READY")
    wanted(control, 1)
    resume(one, 1, 1)
    assert one.answer()[1] == b"done"
    assert ran == ["in time"]


def test_a_child_task_that_exits_does_not_end_the_loop(
    start: Start, control: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    async def leave() -> None:
        raise SystemExit(3)

    async def view(environ: dict[str, Any]) -> bytes:
        async with layby.io:
            try:
                await asyncio.create_task(leave())
            except SystemExit as error:
                return f"{error.code}".encode()
        return b"no exit"

    assert answer_of(start, control, view) == (200, b"3")
    assert "SystemExit" in caplog.text


# --- cancelled requests ---


def test_a_client_that_leaves_cancels_the_task_and_then_the_request(
    start: Start, control: Connection
) -> None:
    events: list[Any] = []
    aboard = threading.Event()

    async def view(environ: dict[str, Any]) -> bytes:
        try:
            async with layby.io:
                aboard.set()
                try:
                    await asyncio.sleep(60)
                except asyncio.CancelledError:
                    events.append(("cancelled", threading.current_thread().name))
                    raise
                finally:
                    await asyncio.sleep(0.01)
                    events.append(("cleaned up", threading.current_thread().name))
        finally:
            events.append(("ended", threading.current_thread().name))
        return b"unreachable"

    one, two = start(app(view), mode="coroutine", slots=2)
    one.request(1)
    leaves(one, 1)
    assert aboard.wait(20)
    two.send("CANCEL", request=1, epoch=1)
    ready = two.expect("READY")
    assert (ready.request, ready.epoch) == (1, 1)
    assert events == [
        ("cancelled", "layby-loop"),
        ("cleaned up", "layby-loop"),
        ("ended", "slot-1"),
    ]
    assert control.quiet()


def test_a_task_that_ignores_its_cancellation_still_ends_its_request(
    start: Start, control: Connection
) -> None:
    events: list[str] = []
    aboard = threading.Event()

    async def view(environ: dict[str, Any]) -> bytes:
        try:
            async with layby.io:
                aboard.set()
                try:
                    await asyncio.sleep(60)
                except asyncio.CancelledError:
                    events.append("ignored")
            events.append("unreachable")
        except layby.Cancelled:
            events.append(f"ended on {thread_number()}")
            raise
        return b"unreachable"

    [slot] = start(app(view), mode="coroutine")
    slot.request(1)
    leaves(slot, 1)
    assert aboard.wait(20)
    slot.send("CANCEL", request=1, epoch=1)
    slot.expect("READY")
    assert events == ["ignored", "ended on 0"]


def test_a_cancel_may_come_before_the_loop_has_begun(start: Start, control: Connection) -> None:
    events: list[str] = []
    blocked, release = threading.Event(), threading.Event()

    def block() -> None:
        blocked.set()
        release.wait(20)

    async def view(environ: dict[str, Any]) -> bytes:
        try:
            async with layby.io:
                events.append("unreachable")
        finally:
            events.append(f"ended on {thread_number()}")
        return b"unreachable"

    [slot] = start(app(view), mode="coroutine")
    _loop.loop().call_soon_threadsafe(block)
    assert blocked.wait(20)
    slot.request(1)
    leaves(slot, 1)
    slot.send("CANCEL", request=1, epoch=1)
    assert slot.quiet()
    release.set()
    slot.expect("READY")
    assert events == ["ended on 0"]


def test_a_task_that_never_ends_is_given_up(
    start: Start,
    control: Connection,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(_ride.Board, "patience", 0.1)
    release: list[asyncio.Event] = []
    aboard, ended = threading.Event(), threading.Event()

    async def view(environ: dict[str, Any]) -> bytes:
        try:
            async with layby.io:
                release.append(asyncio.Event())
                aboard.set()
                while not release[0].is_set():
                    try:
                        await release[0].wait()
                    except asyncio.CancelledError:
                        pass
                ended.set()
        except GeneratorExit:
            raise
        return b"unreachable"

    [slot] = start(app(view), mode="coroutine")
    slot.request(1)
    leaves(slot, 1)
    assert aboard.wait(20)
    slot.send("CANCEL", request=1, epoch=1)
    slot.expect("READY")
    assert "given up" in caplog.text
    # The slot serves on; what comes back late wants nothing any more.
    _loop.loop().call_soon_threadsafe(release[0].set)
    assert ended.wait(20)
    assert control.quiet()


@pytest.mark.parametrize("where", ["task", "child"])
def test_a_shield_inside_a_block_puts_its_cancellation_off(
    start: Start, control: Connection, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Also beyond the patience that there is with code that ignores it."""
    monkeypatch.setattr(_ride.Board, "patience", 0.1)
    release: list[asyncio.Event] = []
    aboard = threading.Event()
    events: list[str] = []

    async def shielded() -> None:
        with layby.shield():
            with layby.shield():
                release.append(asyncio.Event())
                aboard.set()
                await release[0].wait()
            await asyncio.sleep(0.01)
            events.append("seen through")

    async def view(environ: dict[str, Any]) -> bytes:
        try:
            async with layby.io:
                try:
                    if where == "task":
                        await shielded()
                    else:
                        await asyncio.gather(shielded())
                    await asyncio.sleep(60)
                except asyncio.CancelledError:
                    events.append("cancelled")
                    raise
        finally:
            job = current_job()
            assert job is not None
            events.append(f"ended on {thread_number()}, depth {job.shields}")
        return b"unreachable"

    one, two = start(app(view), mode="coroutine", slots=2)
    one.request(1)
    leaves(one, 1)
    assert aboard.wait(20)
    two.send("CANCEL", request=1, epoch=1)
    assert two.quiet(0.5)
    assert events == []
    _loop.loop().call_soon_threadsafe(release[0].set)
    two.expect("READY")
    assert events == ["seen through", "cancelled", "ended on 1, depth 0"]


def test_a_shield_at_the_end_of_a_block_is_seen_through(start: Start, control: Connection) -> None:
    release: list[asyncio.Event] = []
    aboard = threading.Event()
    events: list[str] = []

    async def view(environ: dict[str, Any]) -> bytes:
        async with layby.io:
            with layby.shield():
                release.append(asyncio.Event())
                aboard.set()
                await release[0].wait()
                events.append("seen through")
        events.append("unreachable")
        return b"unreachable"

    [slot] = start(app(view), mode="coroutine")
    slot.request(1)
    leaves(slot, 1)
    assert aboard.wait(20)
    slot.send("CANCEL", request=1, epoch=1)
    assert slot.quiet()
    _loop.loop().call_soon_threadsafe(release[0].set)
    slot.expect("READY")
    assert events == ["seen through"]


def test_after_a_shield_there_is_no_more_patience_than_ever(
    start: Start,
    control: Connection,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(_ride.Board, "patience", 0.1)
    release: list[asyncio.Event] = []
    aboard, ended = threading.Event(), threading.Event()

    async def view(environ: dict[str, Any]) -> bytes:
        async with layby.io:
            release.extend((asyncio.Event(), asyncio.Event()))
            with layby.shield():
                aboard.set()
                await release[0].wait()
            while not release[1].is_set():
                with suppress(asyncio.CancelledError):
                    await release[1].wait()
            ended.set()
        return b"unreachable"

    [slot] = start(app(view), mode="coroutine")
    slot.request(1)
    leaves(slot, 1)
    assert aboard.wait(20)
    slot.send("CANCEL", request=1, epoch=1)
    assert slot.quiet(0.5)
    _loop.loop().call_soon_threadsafe(release[0].set)
    slot.expect("READY")
    assert "given up" in caplog.text
    _loop.loop().call_soon_threadsafe(release[1].set)
    assert ended.wait(20)


def test_what_a_shield_calls_in_a_slot_runs_and_is_shielded(
    start: Start, control: Connection
) -> None:
    events: list[str] = []

    def save(what: str) -> None:
        events.append(f"{what} on {thread_number()}, {layby.sleep(0.5).result()}")

    async def view(environ: dict[str, Any]) -> bytes:
        async with layby.io:
            with layby.shield():
                await layby.in_slot(save, "asked for")
                await layby.in_slot(save, "then")
        return b"unreachable"

    one, two = start(app(view), mode="coroutine", slots=2)
    one.request(1)
    leaves(one, 1)
    # The gateway was asked for a slot, but gives a cancelled request no more but this one.
    control.expect("CALL")
    two.send("CANCEL", request=1, epoch=1)
    for _ in range(2):
        hold = two.expect("HOLD")
        assert (hold.request, hold.epoch, hold.flags) == (1, 1, SHIELDED)
        two.results("RESULTS", 1, 1, {"slept": 0.5})
    two.expect("READY")
    assert events == ["asked for on 1, 0.5", "then on 1, 0.5"]


def test_a_cancel_lets_calls_under_way_end_first(start: Start, control: Connection) -> None:
    begun, release = threading.Event(), threading.Event()
    events: list[str] = []

    def blocking() -> None:
        begun.set()
        release.wait(20)
        events.append("call ended")

    async def view(environ: dict[str, Any]) -> bytes:
        try:
            async with layby.io:
                await layby.in_slot(blocking)
        finally:
            events.append("request ended")
        return b"unreachable"

    one, two = start(app(view), mode="coroutine", slots=2)
    one.request(1)
    leaves(one, 1)
    run_call(two, control, 1)
    assert begun.wait(20)
    one.send("CANCEL", request=1, epoch=1)
    assert one.quiet()
    release.set()
    two.expect("READY")
    one.expect("READY")
    assert events == ["call ended", "request ended"]


def test_what_a_cancelled_block_cleans_up_in_a_slot_runs_in_the_one_that_ends_it(
    start: Start, control: Connection
) -> None:
    events: list[str] = []

    def clean_up() -> None:
        job = current_job()
        assert job is not None
        events.append(f"cleaned up on {thread_number()}, {layby.sleep(0.5).result()}")

    async def view(environ: dict[str, Any]) -> bytes:
        try:
            async with layby.io:
                try:
                    await layby.in_slot(events.append, "never begun")
                finally:
                    await layby.in_slot(clean_up)
        finally:
            job = current_job()
            assert job is not None
            events.append(f"ended {job.cancelled}")
        return b"unreachable"

    one, two = start(app(view), mode="coroutine", slots=2)
    one.request(1)
    leaves(one, 1)
    control.expect("CALL")
    two.send("CANCEL", request=1, epoch=1)
    hold = two.expect("HOLD")
    assert (hold.request, hold.epoch) == (1, 1)
    two.results("RESULTS", 1, 1, {"slept": 0.5})
    two.expect("READY")
    assert events == ["cleaned up on 1, 0.5", "ended True"]
    assert control.quiet()


# --- waiting in place ---


@pytest.fixture
def obstacle() -> Iterator[list[Obstacle]]:
    obstacles: list[Obstacle] = []

    def check(job: _job.Job) -> Obstacle | None:
        return obstacles[0] if obstacles else None

    _job.park_checks.append(check)
    yield obstacles
    _job.park_checks.remove(check)


async def blocks_twice(environ: dict[str, Any]) -> bytes:
    seen = []
    for _ in range(2):
        async with layby.io:
            await asyncio.sleep(0)
            seen.append(threading.current_thread().name)
            seen.append(await layby.in_slot(lambda: threading.current_thread().name))
        seen.append(threading.current_thread().name)
    return " ".join(seen).encode()


IN_PLACE = b" ".join([b"layby-loop slot-0 slot-0"] * 2)


def test_what_must_not_park_rides_while_its_slot_waits(
    start: Start, obstacle: list[Obstacle]
) -> None:
    [slot] = start(app(blocks_twice), mode="coroutine")
    obstacle.append(Obstacle("transaction", "transaction on alias 'default'"))
    slot.request(1)
    for _ in range(2):
        hold = slot.expect("HOLD")
        assert (hold.request, hold.epoch, hold.flags, hold.body) == (1, 0, LOCAL, b"")
        assert list(hold.plan) == ["hold"]
        assert hold.plan["hold"]["reason"] == "transaction"
        assert "test_io.py:" in hold.plan["hold"]["source"]
    assert slot.answer()[1] == IN_PLACE


def test_strict_mode_refuses_a_block_in_a_transaction(
    start: Start, obstacle: list[Obstacle], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def view(environ: dict[str, Any]) -> bytes:
        try:
            return await blocks_twice(environ)
        except layby.ParkRefused as error:
            return str(error).encode()

    monkeypatch.setenv("LAYBY_STRICT", "1")
    [slot] = start(app(view), mode="coroutine")
    obstacle.append(Obstacle("transaction", "alias 'default'"))
    slot.request(1)
    assert slot.answer()[1] == b"cannot park here (transaction): alias 'default'"


def test_below_synchronous_code_it_rides_while_the_slot_waits(start: Start) -> None:
    user = contextvars.ContextVar("user", default="nobody")

    async def below(environ: dict[str, Any]) -> bytes:
        user.set("before")
        async with layby.io:
            seen = user.get()
            user.set("inside")
        return f"{seen} {user.get()}".encode()

    async def view(environ: dict[str, Any]) -> bytes:
        job = current_job()
        assert job is not None
        job.inline.append("middleware")
        seen = drive(below(environ))
        job.inline.pop()
        return seen + b" " + user.get().encode()

    [slot] = start(app(view), mode="coroutine")
    slot.request(1)
    hold = slot.expect("HOLD")
    assert (hold.flags, hold.plan["hold"]["reason"]) == (LOCAL, "middleware")
    assert slot.answer()[1] == b"before inside inside"


def test_in_wsgi_mode_it_rides_while_the_slot_waits(start: Start) -> None:
    def wsgi(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        body = drive(blocks_twice(environ))
        start_response("200 OK", [])
        return [body]

    [slot] = start(wsgi)
    slot.request(1)
    for _ in range(2):
        hold = slot.expect("HOLD")
        assert (hold.flags, hold.plan["hold"]["reason"]) == (LOCAL, "mode")
    assert slot.answer()[1] == IN_PLACE


def test_outside_layby_it_rides_while_the_thread_waits() -> None:
    name = threading.current_thread().name
    body = drive(blocks_twice({}))
    assert body.decode() == " ".join([f"layby-loop {name} {name}"] * 2)


def test_outside_layby_exceptions_come_back() -> None:
    async def fails() -> None:
        async with layby.io:
            await asyncio.sleep(0)
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        drive(fails())


def test_under_an_event_loop_the_block_is_a_no_op() -> None:
    async def main() -> list[str]:
        task = asyncio.current_task()
        async with layby.io:
            assert asyncio.current_task() is task
            async with layby.io:
                await asyncio.sleep(0)
            name = await layby.in_slot(lambda: threading.current_thread().name)
        return [threading.current_thread().name, name]

    here, called = asyncio.run(main())
    assert here == threading.current_thread().name
    assert called != here


def test_a_coroutine_that_ends_inside_the_block_is_an_error_and_no_hang(
    start: Start, control: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    async def view(environ: dict[str, Any]) -> bytes:
        await layby.io.__aenter__()
        return b"never left"

    with caplog.at_level(logging.ERROR, "layby"):
        status, _ = answer_of(start, control, view)
    assert status == 500
    assert "a coroutine ended inside `async with layby.io`" in caplog.text


def test_forty_requests_ride_at_a_time(start: Start, control: Connection) -> None:
    user = contextvars.ContextVar("user", default="nobody")

    async def view(environ: dict[str, Any]) -> bytes:
        user.set(environ["PATH_INFO"])
        async with layby.io:
            await asyncio.sleep(0.01)
            inside = user.get()
        return f"{inside} {user.get()}".encode()

    slots = start(app(view), mode="coroutine", slots=4)
    for number in range(40):
        slots[number % 4].request(number + 1, f"/{number}")
        leaves(slots[number % 4], number + 1)
    for _ in range(40):
        request = control.expect("WANT").request
        resume(slots[request % 4], request, 1)
        assert slots[request % 4].answer()[1] == f"/{request - 1} /{request - 1}".encode()


def test_rides_leave_nothing_behind(start: Start, control: Connection) -> None:
    async def view(environ: dict[str, Any]) -> bytes:
        with suppress(ValueError):
            async with layby.io:
                await asyncio.gather(asyncio.sleep(0), layby.in_slot(int))
                if environ["PATH_INFO"] == "/fails":
                    raise ValueError("inside")
                if environ["PATH_INFO"] == "/stays":
                    await asyncio.sleep(60)
        return b"done"

    def alive() -> list[Any]:
        gc.collect()
        kinds = (_ride.Ride, _ride.Board, _job.Job)
        # By type: lazy objects of Django answer isinstance() by setting themselves up.
        return [each for each in gc.get_objects() if type(each) in kinds]

    # Of other tests, whose failures are kept for their reports.
    before = len(alive())
    [slot] = start(app(view), mode="coroutine")
    for request, path in enumerate(["/", "/fails", "/stays"] * 10, start=1):
        slot.request(request, path)
        leaves(slot, request)
        run_call(slot, control, request)
        slot.expect("READY")
        if path == "/stays":
            slot.send("CANCEL", request=request, epoch=1)
            slot.expect("READY")
        else:
            wanted(control, request)
            resume(slot, request, 1)
            slot.answer()
    loop = _loop.loop()
    # The slot's thread lets go of a request a moment after it said that it is ready; the loop
    # keeps the context of the timer that it cancelled last until it has gone round once more.
    give_up = time.monotonic() + 20
    while asyncio.all_tasks(loop) or len(alive()) > before:
        assert time.monotonic() < give_up, (asyncio.all_tasks(loop), alive())
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0.01), loop).result(20)
