"""Bodies that come later than their request."""

from __future__ import annotations

import io
import os
import threading
from typing import Any

import pytest
from conftest import Start
from fakegateway import LAZY, READY, SHIELDED, Connection
from test_coroutine import app

import layby
from layby import _body


def lazy(slot: Connection, request: int, length: int | None = None, **environ: str) -> None:
    if length is not None:
        environ["CONTENT_LENGTH"] = str(length)
    slot.request(request, flags=LAZY, REQUEST_METHOD="POST", **environ)


def seen(environ: dict[str, Any]) -> bytes:
    length = environ.get("CONTENT_LENGTH")
    return b"%s bytes: %s" % (str(length).encode(), environ["wsgi.input"].read())


async def ready(environ: dict[str, Any]) -> bytes:
    await layby.body_ready(environ)
    return seen(environ)


def reads(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", [])
    return [seen(environ)]


@pytest.mark.parametrize("as_file", [False, True])
def test_a_coroutine_parks_for_the_body_and_goes_on_at_another_slot(
    start: Start, as_file: bool
) -> None:
    one, two = start(app(ready), mode="coroutine", slots=2)
    lazy(one, 71, 5)
    frame = one.expect("PARK")
    assert (frame.request, frame.epoch, frame.flags) == (71, 0, LAZY)
    assert (frame.head, frame.body) == (b"", b"")
    # The slot is free.
    one.request(72, body=b"other")
    assert one.answer()[1] == b"5 bytes: other"
    if as_file:
        two.send("RESUME", request=71, epoch=1, file=b"hello")
    else:
        two.send("RESUME", request=71, epoch=1, body=b"hello")
    frame = two.expect("ANSWER")
    assert (frame.epoch, frame.flags, frame.body) == (1, READY, b"5 bytes: hello")


def test_a_body_of_unknown_length_says_how_long_it_was(start: Start) -> None:
    [slot] = start(app(ready), mode="coroutine")
    lazy(slot, 1)
    slot.expect("PARK")
    slot.send("RESUME", request=1, epoch=1, body=b"hello")
    assert slot.answer()[1] == b"5 bytes: hello"


def test_a_body_that_is_here_is_not_waited_for(start: Start) -> None:
    async def twice(environ: dict[str, Any]) -> bytes:
        await layby.body_ready(environ)
        await layby.body_ready(environ)
        return seen(environ)

    [slot] = start(app(twice), mode="coroutine")
    slot.request(1, body=b"abc")
    assert slot.answer()[1] == b"3 bytes: abc"
    lazy(slot, 2, 3)
    slot.expect("PARK")
    slot.send("RESUME", request=2, epoch=1, body=b"abc")
    assert slot.answer()[1] == b"3 bytes: abc"


def test_a_body_that_is_not_wanted_is_never_asked_for(start: Start) -> None:
    async def refuses(environ: dict[str, Any]) -> bytes:
        return b"no, thank you"

    [slot] = start(app(refuses), mode="coroutine")
    lazy(slot, 1, 5 << 30)
    frame = slot.expect("ANSWER")
    assert (frame.flags, frame.body) == (READY, b"no, thank you")


def test_whoever_just_reads_waits_in_place(start: Start) -> None:
    async def reads_at_once(environ: dict[str, Any]) -> bytes:
        return seen(environ)

    for slot in (*start(app(reads_at_once), mode="coroutine"), *start(reads)):
        lazy(slot, 1, 5)
        frame = slot.expect("HOLD")
        assert (frame.flags, frame.body) == (LAZY, b"")
        assert frame.plan["hold"]["reason"] == "mode"
        assert "test_bodies.py:" in frame.plan["hold"]["source"]
        slot.send("RESULTS", request=1, epoch=0, file=b"hello")
        assert slot.answer()[1] == b"5 bytes: hello"


def test_wsgi_mode_waits_before_the_application_if_the_length_is_unknown(start: Start) -> None:
    def by_the_book(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))]

    [slot] = start(by_the_book)
    lazy(slot, 1)
    slot.expect("HOLD")
    slot.send("RESULTS", request=1, epoch=0, body=b"hello")
    assert slot.answer()[1] == b"hello"


def test_the_wait_for_a_body_can_be_shielded(start: Start) -> None:
    async def shielded(environ: dict[str, Any]) -> bytes:
        with layby.shield():
            return await ready(environ)

    [slot] = start(app(shielded), mode="coroutine")
    lazy(slot, 1, 1)
    assert slot.expect("PARK").flags == LAZY | SHIELDED
    slot.send("RESUME", request=1, epoch=1, body=b"x")
    slot.answer()


@pytest.mark.parametrize("mode", ["coroutine", "wsgi"])
def test_a_body_that_cannot_be_had_ends_the_request(start: Start, mode: str) -> None:
    events: list[str] = []

    async def view(environ: dict[str, Any]) -> bytes:
        try:
            await layby.body_ready(environ)
        finally:
            events.append("finally")
            with pytest.raises(layby.Cancelled):
                environ["wsgi.input"].read()
        raise AssertionError("went on without the body")

    def plain(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        try:
            return reads(environ, start_response)
        finally:
            events.append("finally")

    [slot] = start(app(view) if mode == "coroutine" else plain, mode=mode)
    lazy(slot, 1, 5)
    if mode == "coroutine":
        slot.expect("PARK")
        slot.send("CANCEL", request=1, epoch=1)
    else:
        slot.expect("HOLD")
        slot.send("CANCEL", request=1, epoch=0)
    assert slot.expect("READY").request == 1
    assert events == ["finally"]


def test_nobody_else_can_wait_for_it(start: Start) -> None:
    seen: list[BaseException] = []

    def on_thread(body: Any) -> None:
        try:
            body.read()
        except OSError as error:
            seen.append(error)

    async def view(environ: dict[str, Any]) -> bytes:
        thread = threading.Thread(target=on_thread, args=(environ["wsgi.input"],))
        thread.start()
        thread.join()
        return b"done"

    [slot] = start(app(view), mode="coroutine")
    lazy(slot, 1, 5)
    assert slot.answer()[1] == b"done"
    assert isinstance(seen[0], layby.BodyNotReady)
    assert isinstance(seen[0], layby.Error)


def test_once_the_answer_has_begun_it_is_too_late_to_ask(start: Start) -> None:
    def streams(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [])
        yield b"begun "
        try:
            environ["wsgi.input"].read()
        except layby.BodyNotReady as error:
            yield str(error).encode()

    [slot] = start(streams)
    lazy(slot, 1, 5)
    assert b"begun the body can only be asked for before" in slot.answer()[1]


@pytest.mark.parametrize("said", ["too long", "too short", "with its request", "as its file"])
def test_a_body_that_is_not_as_announced_ends_the_slot(start: Start, said: str) -> None:
    [slot] = start(app(ready), mode="coroutine")
    before = len(os.listdir("/proc/self/fd"))
    match said:
        case "with its request":
            slot.request(1, flags=LAZY, body=b"abc")
        case "as its file":
            slot.request(1, flags=LAZY, file=b"abc")
        case _:
            lazy(slot, 1, 4)
            slot.expect("PARK")
            slot.send("RESUME", request=1, epoch=1, file=b"abcde" if said == "too long" else b"abc")
    assert slot.closed()
    assert len(os.listdir("/proc/self/fd")) <= before


def test_it_reads_like_any_file(start: Start) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        body = environ["wsgi.input"]
        assert (body.tell(), body.readable(), body.seekable()) == (0, True, True)
        with pytest.raises(io.UnsupportedOperation):
            body.fileno()
        parts = [body.readline(), body.readline(2), body.read(1), body.read1(1), body.read(None)]
        assert parts == [b"one\n", b"tw", b"o", b"\n", b"three\nfour\n"]
        body.seek(0)
        assert list(body) == [b"one\n", b"two\n", b"three\n", b"four\n"]
        assert body.seek(4) == 4
        buffer = bytearray(3)
        assert (body.readinto(buffer), buffer) == (3, b"two")
        assert os.fstat(body.fileno()).st_size == body.seek(0, os.SEEK_END)
        start_response("200 OK", [])
        return [b"right"]

    [slot] = start(app)
    lazy(slot, 1, 19)
    slot.expect("HOLD")
    slot.send("RESULTS", request=1, epoch=0, file=b"one\ntwo\nthree\nfour\n")
    assert slot.answer()[1] == b"right"


def test_descriptors_of_bodies_are_closed_with_their_requests(start: Start) -> None:
    [slot] = start(app(ready), mode="coroutine")
    before = len(os.listdir("/proc/self/fd"))
    for request in range(20):
        lazy(slot, request, 3)
        slot.expect("PARK")
        slot.send("RESUME", request=request, epoch=1, file=b"abc")
        slot.answer()
    # The last one's may just be being closed.
    assert len(os.listdir("/proc/self/fd")) <= before + 1


class Files(dict[str, Any]):
    def getlist(self, name: str) -> list[Any]:
        return list(self.get(name, []))


def test_outside_layby_the_body_is_always_there() -> None:
    class Request:
        FILES = Files(photo=["first", "last"])

    class Flasks:
        files = Files(photo=["only"])
        environ = {"wsgi.input": io.BytesIO()}  # noqa: RUF012

    async def both() -> tuple[Any, Any]:
        await layby.body_ready(Request())
        return (
            await layby.read_uploaded_file(Request(), "photo"),
            await layby.read_uploaded_file(Flasks(), "photo"),
        )

    coroutine = both()
    with pytest.raises(StopIteration) as stop:
        coroutine.send(None)
    assert stop.value.value == ("last", "only")

    missing = layby.read_uploaded_file(Request(), "video")
    with pytest.raises(KeyError, match="video"):
        missing.send(None)


def test_the_request_inside_a_wrapper_is_found() -> None:
    environ: dict[str, Any] = {}
    environ["wsgi.input"] = body = _body.LazyBody(environ)

    class Request:
        def __init__(self) -> None:
            self.environ = environ

    class Wrapper:
        def __init__(self) -> None:
            self._request = Request()

    assert _body.body_of(Wrapper()) is _body.body_of(Request()) is _body.body_of(environ) is body
    assert repr(body) == "<LazyBody not here yet>"
    assert _body.body_of(object()) is None
