"""coroutine mode: requests that park on one slot and go on at another."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from conftest import Start
from fakegateway import MORE, READY, SHIELDED, Connection, response

import layby
from layby import _job
from layby._job import Obstacle, current_job, in_slot


class Answer:
    """What a coroutine application returns."""

    def __init__(self, *chunks: bytes, quick: bool = True, status: str = "200 OK") -> None:
        self.status = status
        self.headers: list[tuple[str, str]] = []
        self.quick_close = quick
        self.chunks = chunks
        self.closed = False

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.chunks)

    def close(self) -> None:
        self.closed = True


View = Callable[[dict[str, Any]], Awaitable[bytes]]


def app(view: View) -> Any:
    async def run(environ: dict[str, Any]) -> Answer:
        return Answer(await view(environ))

    return run


def park(slot: Connection, request: int, epoch: int = 0) -> Any:
    """Expects that a request parks; its plan."""
    frame = slot.expect("PARK")
    assert (frame.request, frame.epoch) == (request, epoch)
    return frame.plan


def thread_number() -> int:
    return int(threading.current_thread().name.removeprefix("slot-"))


def test_a_request_parks_on_one_slot_and_goes_on_at_another(start: Start) -> None:
    async def view(environ: dict[str, Any]) -> bytes:
        local = f"{environ['PATH_INFO']} {thread_number()}"
        quote = await layby.post("http://a.example/", json={"a": 1})
        return f"{local} {thread_number()} {quote.text}".encode()

    one, two = start(app(view), mode="coroutine", slots=2)
    one.request(71, "/a")
    frame = one.expect("PARK")
    assert (frame.request, frame.epoch, frame.flags, frame.body) == (71, 0, 0, b'{"a":1}')
    [thing] = frame.plan["gather"]
    assert thing["fetch"]["method"] == "POST"
    assert thing["fetch"]["body"] == [0, 7]
    # The slot is free for another request.
    one.request(72, "/b")
    park(one, 72)
    two.results("RESUME", 71, 1, response(b"12"), body=b"12")
    frame = two.expect("ANSWER")
    assert (frame.request, frame.epoch, frame.flags) == (71, 1, READY)
    assert frame.body == b"/a 0 1 12"
    one.results("RESUME", 72, 1, response(b"13"), file=b"13")
    assert one.answer()[1] == b"/b 0 0 13"


def test_it_parks_as_often_as_it_likes(start: Start) -> None:
    async def view(environ: dict[str, Any]) -> bytes:
        slept = [await layby.sleep(seconds) for seconds in (0.1, 0.2, 0.3)]
        return repr(slept).encode()

    slots = start(app(view), mode="coroutine", slots=2)
    slots[0].request(1)
    for epoch in range(3):
        plan = park(slots[epoch % 2], 1, epoch)
        slept = plan["gather"][0]["sleep"]
        slots[(epoch + 1) % 2].results("RESUME", 1, epoch + 1, {"slept": slept})
    assert slots[1].answer()[1] == b"[0.1, 0.2, 0.3]"


def test_context_variables_travel_with_their_request(start: Start) -> None:
    user = contextvars.ContextVar("user", default="nobody")

    async def view(environ: dict[str, Any]) -> bytes:
        before = user.get()
        user.set(environ["PATH_INFO"])
        await layby.sleep(1)
        return f"{before} {user.get()}".encode()

    one, two = start(app(view), mode="coroutine", slots=2)
    for request, path in ((1, "/ann"), (2, "/bob")):
        one.request(request, path)
        park(one, request)
    two.results("RESUME", 2, 1, {"slept": 1.0})
    assert two.answer()[1] == b"nobody /bob"
    two.results("RESUME", 1, 1, {"slept": 1.0})
    assert two.answer()[1] == b"nobody /ann"


def test_the_current_job_is_that_of_the_request(start: Start) -> None:
    async def view(environ: dict[str, Any]) -> bytes:
        first = current_job()
        assert first is not None
        assert first.environ is environ
        assert in_slot()
        await layby.sleep(1)
        assert current_job() is first
        return f"{first.request} {first.epoch} {first.slot}".encode()

    one, two = start(app(view), mode="coroutine", slots=2)
    one.request(7)
    park(one, 7)
    two.results("RESUME", 7, 1, {"slept": 1.0})
    assert two.answer()[1] == b"7 1 1"
    assert current_job() is None
    assert not in_slot()


def test_a_fetch_that_failed_raises_in_the_view(start: Start) -> None:
    async def view(environ: dict[str, Any]) -> bytes:
        try:
            await layby.get("http://a.example/")
        except layby.ConnectError as error:
            return f"{error.method} {error.url} {error.phase}: {error.message}".encode()
        return b"no error"

    [slot] = start(app(view), mode="coroutine")
    slot.request(1)
    park(slot, 1)
    failure = {
        "error": "connect",
        "phase": "dns",
        "message": "no such name",
        "url": "http://a.example/",
        "seconds": 0.1,
    }
    slot.results("RESUME", 1, 1, failure)
    assert slot.answer()[1] == b"GET http://a.example/ dns: no such name"


@pytest.mark.parametrize("quick", [True, False])
def test_close_comes_before_ready(start: Start, quick: bool) -> None:
    answers = []

    async def run(environ: dict[str, Any]) -> Answer:
        answers.append(Answer(b"one ", b"two", quick=quick))
        return answers[-1]

    [slot] = start(run, mode="coroutine")
    slot.request(1)
    if quick:
        frame = slot.expect("ANSWER")
        assert (frame.body, frame.flags) == (b"one two", READY)
    else:
        frame = slot.expect("ANSWER")
        assert (frame.body, frame.flags) == (b"one ", MORE)
        assert slot.expect("BODY").body == b"two"
        assert slot.expect("BODY").flags == 0
        slot.expect("READY")
    assert answers[0].closed


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(1)])
def test_an_error_after_a_park_is_a_500(
    start: Start, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    async def view(environ: dict[str, Any]) -> bytes:
        await layby.sleep(1)
        raise error

    [slot] = start(app(view), mode="coroutine")
    for request in (1, 2):
        slot.request(request)
        park(slot, request)
        slot.results("RESUME", request, 1, {"slept": 1.0})
        assert slot.answer()[0].aux == 500
    assert "the application failed: GET /" in caplog.text


def test_a_cancelled_request_runs_its_finally_blocks_and_answers_nothing(start: Start) -> None:
    events: list[Any] = []

    async def view(environ: dict[str, Any]) -> bytes:
        try:
            await layby.sleep(60)
        except Exception:
            events.append("taken for a failure")
        finally:
            job = current_job()
            assert job is not None
            events.append((thread_number(), job.cancelled))
        return b"unreachable"

    one, two = start(app(view), mode="coroutine", slots=2)
    one.request(1)
    park(one, 1)
    two.send("CANCEL", request=1, epoch=1)
    ready = two.expect("READY")
    assert (ready.request, ready.epoch) == (1, 1)
    assert events == [(1, True)]


def test_a_cancelled_request_that_awaits_waits_in_place(start: Start) -> None:
    results = []

    async def view(environ: dict[str, Any]) -> bytes:
        try:
            await layby.sleep(60)
        finally:
            results.append(await layby.post("http://a.example/undo"))
        return b"unreachable"

    [slot] = start(app(view), mode="coroutine")
    slot.request(1)
    park(slot, 1)
    slot.send("CANCEL", request=1, epoch=1)
    hold = slot.expect("HOLD")
    assert (hold.epoch, hold.plan["hold"]["reason"]) == (1, "unsupported")
    slot.results("RESULTS", 1, 1, response(status=204))
    slot.expect("READY")
    assert [answer.status_code for answer in results] == [204]


def test_an_answer_after_a_swallowed_cancel_is_closed_and_discarded(start: Start) -> None:
    answers = []

    async def run(environ: dict[str, Any]) -> Answer:
        try:
            await layby.sleep(60)
        except BaseException:
            answers.append(Answer(b"nobody wants this"))
        return answers[-1]

    [slot] = start(run, mode="coroutine")
    slot.request(1)
    park(slot, 1)
    slot.send("CANCEL", request=1, epoch=1)
    slot.expect("READY")
    assert answers[0].closed


def test_result_waits_in_place(start: Start) -> None:
    async def view(environ: dict[str, Any]) -> bytes:
        return str(layby.sleep(0.5).result()).encode()

    [slot] = start(app(view), mode="coroutine")
    slot.request(1)
    hold = slot.expect("HOLD")
    assert hold.plan["hold"]["reason"] == "mode"
    slot.results("RESULTS", 1, 0, {"slept": 0.5})
    assert slot.answer()[1] == b"0.5"


@pytest.fixture
def obstacle(monkeypatch: pytest.MonkeyPatch) -> list[Obstacle]:
    obstacles: list[Obstacle] = []
    check = lambda job: obstacles[0] if obstacles else None  # noqa: E731
    monkeypatch.setattr(_job, "park_checks", _job.park_checks)
    _job.park_checks.append(check)
    obstacles_of_test = obstacles
    yield obstacles_of_test
    _job.park_checks.remove(check)


async def sleeper(environ: dict[str, Any]) -> bytes:
    try:
        return str(await layby.sleep(0.5)).encode()
    except layby.ParkRefused as error:
        return f"refused: {error}".encode()


def test_what_must_not_park_waits_in_place(
    start: Start, obstacle: list[Obstacle], caplog: pytest.LogCaptureFixture
) -> None:
    [slot] = start(app(sleeper), mode="coroutine")
    obstacle.append(Obstacle("transaction", "transaction on alias 'default'"))
    for request in (1, 2):
        slot.request(request)
        hold = slot.expect("HOLD")
        assert hold.plan["hold"]["reason"] == "transaction"
        source, _, line = hold.plan["hold"]["source"].rpartition(":")
        assert source.endswith("test_coroutine.py")
        with open(__file__) as file:
            assert "await layby.sleep(0.5)" in file.readlines()[int(line) - 1]
        slot.results("RESULTS", request, 0, {"slept": 0.5})
        assert slot.answer()[1] == b"0.5"
    assert caplog.text.count("waits in place (transaction): transaction on alias 'default'") == 1
    obstacle.clear()
    slot.request(3)
    park(slot, 3)


def test_strict_mode_refuses_to_park_in_a_transaction(
    start: Start, obstacle: list[Obstacle], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAYBY_STRICT", "1")
    [slot] = start(app(sleeper), mode="coroutine")
    obstacle.append(Obstacle("transaction", "transaction on alias 'default'"))
    slot.request(1)
    assert slot.answer()[1] == (
        b"refused: cannot park here (transaction): transaction on alias 'default'"
    )
    # Another obstacle is no fault of the application's: it waits in place all the same.
    obstacle[0] = Obstacle("middleware", "OldMiddleware")
    slot.request(2)
    assert slot.expect("HOLD").plan["hold"]["reason"] == "middleware"
    slot.results("RESULTS", 2, 0, {"slept": 0.5})
    assert slot.answer()[1] == b"0.5"


def test_below_synchronous_code_it_waits_in_place(start: Start) -> None:
    from layby._drive import drive

    async def view(environ: dict[str, Any]) -> bytes:
        job = current_job()
        assert job is not None
        job.inline.append("middleware")
        below = drive(sleeper(environ))
        job.inline.pop()
        return below + b" " + await sleeper(environ)

    [slot] = start(app(view), mode="coroutine")
    slot.request(1)
    hold = slot.expect("HOLD")
    assert hold.plan["hold"]["reason"] == "middleware"
    slot.results("RESULTS", 1, 0, {"slept": 0.25})
    park(slot, 1)
    slot.results("RESUME", 1, 1, {"slept": 0.5})
    assert slot.answer()[1] == b"0.25 0.5"


def test_hooks_run_in_the_context_on_the_thread_that_leaves_or_enters(start: Start) -> None:
    events: list[tuple[str, int, str]] = []
    user = contextvars.ContextVar("user", default="nobody")

    async def view(environ: dict[str, Any]) -> bytes:
        user.set("ann")
        await layby.sleep(1)
        events.append(("goes on", thread_number(), user.get()))
        return b""

    def leaves(job: _job.Job) -> None:
        events.append(("leaves", thread_number(), user.get()))

    def enters(job: _job.Job) -> None:
        events.append(("enters", thread_number(), user.get()))

    _job.on_leave.append(leaves)
    _job.before_resume.append(enters)
    try:
        one, two = start(app(view), mode="coroutine", slots=2)
        one.request(1)
        park(one, 1)
        two.results("RESUME", 1, 1, {"slept": 1.0})
        two.answer()
    finally:
        _job.on_leave.remove(leaves)
        _job.before_resume.remove(enters)
    assert events == [("leaves", 0, "ann"), ("enters", 1, "ann"), ("goes on", 1, "ann")]


def test_asyncio_in_a_slot_is_an_error_that_says_so(start: Start) -> None:
    class Foreign:
        def __await__(self) -> Iterator[Any]:
            yield "a future of some loop"

    async def view(environ: dict[str, Any]) -> bytes:
        try:
            await Foreign()
        except layby.Error as error:
            return str(error).encode()
        return b"no error"

    [slot] = start(app(view), mode="coroutine")
    slot.request(1)
    assert b"asyncio cannot be used in a slot" in slot.answer()[1]


def test_no_running_event_loop_is_explained(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    async def view(environ: dict[str, Any]) -> bytes:
        await asyncio.sleep(0.1)
        return b"unreachable"

    [slot] = start(app(view), mode="coroutine")
    slot.request(1)
    assert slot.answer()[0].aux == 500
    assert "no running event loop" in caplog.text
    assert "asyncio cannot be used in a slot" in caplog.text


def test_an_event_loop_of_the_views_own_waits_in_place(start: Start) -> None:
    async def view(environ: dict[str, Any]) -> bytes:
        async def inner() -> float:
            with pytest.raises(layby.NotInASlot):
                layby.sleep(0.25).result()
            return await layby.sleep(0.5)

        return str(asyncio.run(inner())).encode()

    [slot] = start(app(view), mode="coroutine")
    slot.request(1)
    assert slot.expect("HOLD").plan["hold"]["reason"] == "unsupported"
    slot.results("RESULTS", 1, 0, {"slept": 0.5})
    assert slot.answer()[1] == b"0.5"
    gc.collect()


def test_a_shielded_park_says_so(start: Start) -> None:
    async def view(environ: dict[str, Any]) -> bytes:
        with layby.shield():
            await layby.sleep(1)
        await layby.sleep(2)
        return b"done"

    one, two = start(app(view), mode="coroutine", slots=2)
    one.request(1)
    assert one.expect("PARK").flags == SHIELDED
    two.results("RESUME", 1, 1, {"slept": 1.0})
    assert two.expect("PARK").flags == 0
    one.results("RESUME", 1, 2, {"slept": 2.0})
    assert one.answer()[1] == b"done"


def test_many_parked_requests_are_kept_apart(start: Start) -> None:
    async def view(environ: dict[str, Any]) -> bytes:
        answer = await layby.get("http://a.example" + environ["PATH_INFO"])
        return environ["PATH_INFO"].encode() + b" " + answer.content

    slots = start(app(view), mode="coroutine", slots=4)
    for request in range(200):
        slots[request % 4].request(request, f"/{request}")
        plan = park(slots[request % 4], request)
        assert plan["gather"][0]["fetch"]["url"] == f"http://a.example/{request}"
    for request in reversed(range(200)):
        body = f"got {request}".encode()
        slots[request // 50].results("RESUME", request, 1, response(body), body=body)
        assert slots[request // 50].answer()[1] == f"/{request} got {request}".encode()


def test_the_body_of_a_parked_request_can_be_read_after_it(start: Start) -> None:
    async def view(environ: dict[str, Any]) -> bytes:
        first = environ["wsgi.input"].read(4)
        await layby.sleep(1)
        return first[:1] + environ["wsgi.input"].read(1)

    one, two = start(app(view), mode="coroutine", slots=2)
    one.request(1, file=b"aaaabbbb" * 20_000)
    park(one, 1)
    two.results("RESUME", 1, 1, {"slept": 1.0})
    assert two.answer()[1] == b"ab"


def test_a_thing_cut_off_by_a_cancel_cannot_be_asked_again(start: Start) -> None:
    messages = []

    async def view(environ: dict[str, Any]) -> bytes:
        thing = layby.sleep(60)
        try:
            await thing
        finally:
            try:
                await thing
            except layby.Error as error:
                messages.append(str(error))
        return b"unreachable"

    [slot] = start(app(view), mode="coroutine")
    slot.request(1)
    park(slot, 1)
    slot.send("CANCEL", request=1, epoch=1)
    slot.expect("READY")
    assert messages == ["<Sleep 60.0 s dropped> cannot be waited for again"]
