"""greenlet mode: any call stack parks, and goes on where it was, on its own slot."""

from __future__ import annotations

import contextvars
import decimal
import random
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fakegateway import BROKEN, MORE, READY, SHIELDED, response
from stories import PINNED, Start, app, go_on, hold, park, resume, text

import greenlet
import layby
from layby import _job
from layby._drive import drive
from layby._job import current_job


def test_a_synchronous_call_parks_and_goes_on_on_its_slot(start: Start) -> None:
    def view(environ: dict[str, Any]) -> bytes:
        thread = threading.current_thread()
        quote = layby.post("http://a.example/", json={"a": 1}).result()
        assert threading.current_thread() is thread
        return f"{environ['PATH_INFO']} {quote.text}".encode()

    [slot] = start(app(view))
    slot.request(71, "/a")
    frame = slot.expect("PARK")
    assert (frame.request, frame.epoch, frame.flags, frame.body) == (71, 0, PINNED, b'{"a":1}')
    # The slot is free for another request.
    slot.request(72, "/b")
    park(slot, 72)
    slot.results("RESUME", 71, 1, response(b"12"), body=b"12")
    frame, body = slot.answer()
    assert (frame.request, frame.epoch, frame.flags, body) == (71, 1, READY, b"/a 12")
    slot.results("RESUME", 72, 1, response(b"13"), file=b"13")
    assert text(slot) == "/b 13"


def test_it_parks_as_often_as_it_likes(start: Start) -> None:
    def view(environ: dict[str, Any]) -> bytes:
        return repr([layby.sleep(seconds).result() for seconds in (0.1, 0.2, 0.3)]).encode()

    [slot] = start(app(view))
    slot.request(1)
    for epoch, seconds in enumerate((0.1, 0.2, 0.3)):
        assert park(slot, 1, epoch)["gather"] == [{"sleep": seconds}]
        slot.results("RESUME", 1, epoch + 1, {"slept": seconds})
    assert text(slot) == "[0.1, 0.2, 0.3]"


def test_gathers_and_coroutines_park_too(start: Start) -> None:
    async def inner() -> float:
        return await layby.sleep(1)

    def view(environ: dict[str, Any]) -> bytes:
        both = layby.gather(layby.sleep(1), layby.sleep(1)).result()
        return f"{both} {drive(inner())}".encode()

    [slot] = start(app(view))
    slot.request(1)
    assert len(park(slot, 1)["gather"]) == 2
    slot.results("RESUME", 1, 1, {"slept": 1.0}, {"slept": 1.0})
    park(slot, 1, 1)
    resume(slot, 1, 2)
    assert text(slot) == "[1.0, 1.0] 1.0"


def test_what_failed_raises_where_it_was_asked_for(start: Start) -> None:
    def view(environ: dict[str, Any]) -> bytes:
        try:
            layby.get("http://a.example/").result()
        except layby.ConnectError as error:
            return error.phase.encode()
        return b"?"

    [slot] = start(app(view))
    slot.request(1)
    park(slot, 1)
    failed = {"error": "connect", "phase": "dns", "message": "m", "url": "", "seconds": 0.1}
    slot.results("RESUME", 1, 1, failed)
    assert text(slot) == "dns"


USER = contextvars.ContextVar("user", default="nobody")


def test_20_interleaved_requests_keep_their_context(start: Start) -> None:
    from asgiref.local import Local

    language: Any = Local()

    def view(environ: dict[str, Any]) -> bytes:
        path = environ["PATH_INFO"]
        fresh = (USER.get(), getattr(language, "code", None), decimal.getcontext().prec)
        USER.set(path)
        language.code = path
        decimal.getcontext().prec = 5 + int(path[1:])
        layby.sleep(1).result()
        assert fresh == ("nobody", None, 28), fresh
        assert current_job().environ is environ  # type: ignore[union-attr]
        return f"{USER.get()} {language.code} {decimal.getcontext().prec}".encode()

    [slot] = start(app(view))
    requests = list(range(1, 21))
    for request in requests:
        slot.request(request, f"/{request}")
        park(slot, request)
    random.Random(7).shuffle(requests)
    for request in requests:
        resume(slot, request)
        assert text(slot) == f"/{request} /{request} {5 + request}"


def test_a_park_700_calls_deep_and_one_below_c_code(start: Start) -> None:
    def down(levels: int) -> float:
        return down(levels - 1) if levels else layby.sleep(1).result()

    def view(environ: dict[str, Any]) -> bytes:
        deep = down(700)
        ordered = sorted([3, 1, 2], key=lambda n: n * layby.sleep(1).result())
        return f"{deep} {ordered}".encode()

    [slot] = start(app(view))
    for request in (1, 2):
        slot.request(request)
        park(slot, request)
    for epoch in range(1, 5):
        for request in (1, 2):
            resume(slot, request, epoch)
            if epoch < 4:
                park(slot, request, epoch)
            else:
                assert text(slot) == "1.0 [1, 2, 3]"


def test_the_exception_that_is_handled_stays_the_requests_own(start: Start) -> None:
    def view(environ: dict[str, Any]) -> bytes:
        try:
            raise ValueError(environ["PATH_INFO"])
        except ValueError:
            layby.sleep(1).result()
            before = str(sys.exc_info()[1])
        layby.sleep(1).result()
        return f"{before} {sys.exc_info()[1]}".encode()

    [slot] = start(app(view))
    for request in (1, 2):
        slot.request(request, f"/{request}")
        park(slot, request)
    for request in (2, 1):
        resume(slot, request)
        park(slot, request, 1)
    for request in (1, 2):
        resume(slot, request, 2)
        assert text(slot) == f"/{request} None"


def test_an_exception_after_a_park_is_a_plain_500(start: Start, caplog: Any) -> None:
    def view(environ: dict[str, Any]) -> bytes:
        layby.sleep(1).result()
        raise SystemExit("after the park")

    [slot] = start(app(view))
    for request in (1, 2):
        slot.request(request)
        park(slot, request)
        resume(slot, request)
        assert slot.answer()[0].aux == 500
    assert "SystemExit: after the park" in caplog.text


def test_an_answer_parks_between_its_chunks(start: Start) -> None:
    closed = []

    def run(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        try:
            for number in range(3):
                layby.sleep(1).result()
                yield f"{environ['PATH_INFO']}{number} ".encode()
        finally:
            closed.append(environ["PATH_INFO"])

    one_by_one = []
    [slot] = start(run)
    for request in (1, 2):
        slot.request(request, f"/{request}.")
        park(slot, request)
    for epoch in range(3):
        for request in (1, 2):
            resume(slot, request, epoch + 1)
            frame = slot.frame()
            assert (frame.type, frame.flags) == (("BODY", "ANSWER")[epoch == 0], MORE)
            assert (frame.request, frame.epoch) == (request, epoch + 1)
            one_by_one.append(frame.body.decode())
            if epoch < 2:
                park(slot, request, epoch + 1)
            else:
                assert slot.expect("BODY").flags == 0
                slot.expect("READY")
    assert one_by_one == [f"/{r}.{n} " for n in range(3) for r in (1, 2)]
    assert closed == ["/1.", "/2."]


def test_close_waits_in_place_for_the_answer_is_over(start: Start) -> None:
    class Body:
        def __iter__(self) -> Iterator[bytes]:
            yield b"all"

        def close(self) -> None:
            layby.sleep(1).result()

    def run(environ: dict[str, Any], start_response: Any) -> Body:
        start_response("200 OK", [("Content-Length", "3")])
        return Body()

    [slot] = start(run)
    slot.request(1)
    assert slot.answer(ready=False)[1] == b"all"
    assert hold(slot, 1)["reason"] == "mode"
    go_on(slot, 1)
    slot.expect("READY")


def test_a_client_that_left_ends_its_request(start: Start) -> None:
    ended = []

    def view(environ: dict[str, Any]) -> bytes:
        try:
            layby.sleep(1).result()
        except Exception as error:
            ended.append(f"took {error!r} for a failure")
        finally:
            # It cannot park any more, but what it waits for still comes.
            ended.append(f"finally {layby.sleep(1).result()}")
        return b"?"

    [slot] = start(app(view))
    slot.request(1)
    park(slot, 1)
    slot.send("CANCEL", request=1, epoch=1)
    assert hold(slot, 1, 1)["reason"] == "unsupported"
    go_on(slot, 1, 1)
    slot.expect("READY")
    assert ended == ["finally 1.0"]
    slot.request(2)
    park(slot, 2)


def test_a_client_that_left_in_the_middle_of_its_answer_closes_the_generator(start: Start) -> None:
    closed = []

    def run(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        try:
            yield b"first"
            layby.sleep(1).result()
            yield b"second"
        finally:
            closed.append(True)

    [slot] = start(run)
    slot.request(1)
    slot.expect("ANSWER")
    park(slot, 1)
    slot.send("CANCEL", request=1, epoch=1)
    frame = slot.expect("BODY")
    assert (frame.flags, frame.body) == (BROKEN, b"")
    slot.expect("READY")
    assert closed == [True]


def test_a_shielded_park_says_so(start: Start) -> None:
    def view(environ: dict[str, Any]) -> bytes:
        with layby.shield():
            layby.sleep(1).result()
        return b"done"

    [slot] = start(app(view))
    slot.request(1)
    assert slot.expect("PARK").flags == PINNED | SHIELDED


def test_a_helper_thread_is_no_slot(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_job, "in_worker", True)

    def view(environ: dict[str, Any]) -> bytes:
        with ThreadPoolExecutor(1) as pool:
            try:
                pool.submit(lambda: layby.sleep(1).result()).result()
            except layby.NotInASlot as error:
                return str(error).encode()
        return b"?"

    [slot] = start(app(view))
    slot.request(1)
    assert "this thread is no slot" in text(slot)


def test_the_same_in_a_greenlet_of_the_applications_own_waits_in_place(start: Start) -> None:
    def view(environ: dict[str, Any]) -> bytes:
        inner = greenlet.greenlet(lambda: layby.sleep(1).result())
        return f"{inner.switch()}".encode()

    [slot] = start(app(view))
    slot.request(1)
    assert hold(slot, 1)["reason"] == "unsupported"
    go_on(slot, 1)
    assert text(slot) == "1.0"


def test_beyond_the_bound_requests_wait_in_place(start: Start) -> None:
    def view(environ: dict[str, Any]) -> bytes:
        layby.sleep(1).result()
        return b"done"

    one, two = start(app(view), slots=2, max_parked=2)
    one.request(1)
    park(one, 1)
    two.request(2)
    park(two, 2)
    one.request(3)
    assert hold(one, 3)["reason"] == "unsupported"
    go_on(one, 3)
    assert text(one) == "done"
    resume(two, 2)
    assert text(two) == "done"
    one.request(4)
    park(one, 4)


def test_a_resume_on_another_slot_ends_that_slot(start: Start, caplog: Any) -> None:
    def view(environ: dict[str, Any]) -> bytes:
        layby.sleep(1).result()
        return b"done"

    one, two = start(app(view), slots=2)
    one.request(1)
    park(one, 1)
    resume(two, 1)
    assert two.closed()
    assert "no request 1 is parked here" in caplog.text
    resume(one, 1)
    assert text(one) == "done"


@pytest.mark.parametrize("goes", ["connection", "retires"])
def test_what_is_parked_on_a_slot_ends_with_it(start: Start, goes: str) -> None:
    ended: list[str] = []
    closers: list[Any] = []

    def view(environ: dict[str, Any]) -> bytes:
        try:
            layby.sleep(1).result()
        finally:
            ended.append(environ["PATH_INFO"])
        return b"?"

    [slot] = start(app(view))
    _job.slot_closers.append(lambda: closers.append(list(ended)))
    try:
        for request in (1, 2):
            slot.request(request, f"/{request}")
            park(slot, request)
        if goes == "retires":
            slot.send("RETIRE")
            # The READYs of requests that nobody waits for come before.
            while slot.frame().type != "RETIRED":
                pass
            assert slot.closed()
        else:
            import socket

            slot.socket.shutdown(socket.SHUT_RDWR)
        for _ in range(500):
            if closers:
                break
            threading.Event().wait(0.01)
    finally:
        _job.slot_closers.pop()
    # Their `finally` blocks had what the thread holds: connections were closed after.
    assert closers == [["/1", "/2"]]
