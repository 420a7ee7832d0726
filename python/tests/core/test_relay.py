"""Answers that another server gives."""

from __future__ import annotations

import contextvars
import json
import threading
from collections.abc import Iterator
from typing import Any

import flask
import pytest
from conftest import Start
from fakegateway import READY, Connection, Frame, response
from test_coroutine import Answer
from test_outside import Origin

import layby
from layby import _relay

user: contextvars.ContextVar[str] = contextvars.ContextVar("user", default="nobody")

Events = list[tuple[str, layby.Captured]]


@pytest.fixture
def events() -> Events:
    """What became of streams: who saw it, and what was captured."""
    return []


@pytest.fixture
def origin() -> Iterator[Origin]:
    origin = Origin()
    yield origin
    origin.close()


def app(events: Events, *, mode: str, **options: Any) -> Any:
    """An application that streams, and notes its end as the user of the request."""

    def make() -> Any:
        user.set("ada")

        def done(captured: layby.Captured) -> None:
            events.append((user.get(), captured))

        return layby.stream(
            layby.post("http://llm.example/v1", json={"a": 1}), on_done=done, **options
        )

    def plain(environ: dict[str, Any], start_response: Any) -> Any:
        return make()(environ, start_response)

    async def coroutine(environ: dict[str, Any]) -> Answer:
        streamed = Streamed(make())
        streamed.headers = [("Vary", "Cookie"), ("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")]
        return streamed

    return plain if mode == "wsgi" else coroutine


class Streamed(Answer):
    """The answer of a coroutine application around a stream."""

    def __init__(self, application: Any) -> None:
        super().__init__(quick=False)
        self.application = application

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.application({}, lambda status, headers: None))


def end(slot: Connection, request: int, epoch: int, content: bytes = b"", **said: Any) -> None:
    """The gateway says how a relay ended."""
    usual = {"status": 200, "body": [0, len(content)], "truncated": False, "ended": "complete"}
    relay = usual | said
    head = json.dumps({"relay": relay}).encode()
    slot.send("RESUME", request=request, epoch=epoch, head=head, body=content)


def ready(slot: Connection, frame: Frame) -> Frame:
    if frame.flags & READY:
        return frame
    return slot.expect("READY")


@pytest.mark.parametrize("mode", ["wsgi", "coroutine"])
def test_the_gateway_answers_and_the_end_is_a_job_of_its_own(
    start: Start, events: Events, mode: str
) -> None:
    one, two = start(app(events, mode=mode), mode=mode, slots=2)
    one.request(71)
    frame = one.expect("RELAY")
    assert (frame.request, frame.epoch, frame.body) == (71, 0, b'{"a":1}')
    said = json.loads(frame.head)
    assert (said["fetch"]["method"], said["fetch"]["body"]) == ("POST", [0, 7])
    assert (said["capture"], said["resume"]) == (1 << 20, True)
    if mode == "coroutine":
        assert said["headers"] == [["Vary", "Cookie"], ["Set-Cookie", "a=1"], ["Set-Cookie", "b=2"]]
    else:
        assert "headers" not in said
    assert ready(one, frame).epoch == 0
    assert events == []
    # Whichever slot is free does what is to be done at the end.
    end(two, 71, 1, b"data: 1\n")
    assert two.expect("READY")[3:5] == (71, 1)
    assert events == [("ada", layby.Captured(200, b"data: 1\n", False, "complete"))]
    # Not twice.
    end(two, 71, 1)
    assert two.closed()


state = threading.local()


def test_named_thread_locals_are_there_at_the_end(start: Start, events: Events) -> None:
    def done(captured: layby.Captured) -> None:
        events.append((getattr(state, "user", "nobody"), captured))

    async def view(environ: dict[str, Any]) -> Answer:
        user = environ["PATH_INFO"].removeprefix("/")
        if user:
            state.user = user
        return Streamed(layby.stream(layby.get("http://llm.example/"), on_done=done))

    named = (f"{__name__}.state",)
    one, two = start(view, mode="coroutine", slots=2, thread_locals=named)
    for request, path in ((1, "/ada"), (2, "/"), (3, "/bob")):
        one.request(request, path)
        ready(one, one.expect("RELAY"))
    for request in (3, 2, 1):
        end(two, request, 1)
        two.expect("READY")
    assert [user for user, _ in events] == ["bob", "nobody", "ada"]


def test_without_on_done_nothing_comes_back(start: Start) -> None:
    def plain(environ: dict[str, Any], start_response: Any) -> Any:
        return layby.stream(layby.get("http://llm.example/"))(environ, start_response)

    [slot] = start(plain)
    slot.request(1)
    said = json.loads(slot.expect("RELAY").head)
    assert said.keys() == {"fetch"}
    slot.expect("READY")
    assert 1 not in _relay._waiting


@pytest.mark.parametrize("as_file", [False, True])
def test_how_it_ended_is_told(start: Start, events: Events, as_file: bool) -> None:
    [slot] = start(app(events, mode="wsgi", capture=3))
    slot.request(1)
    assert json.loads(slot.expect("RELAY").head)["capture"] == 3
    slot.expect("READY")
    said = {"status": 503, "body": [1, 3], "truncated": True, "ended": "client_gone"}
    head = json.dumps({"relay": said}).encode()
    bytes_ = {"file": b".abc."} if as_file else {"body": b".abc."}
    slot.send("RESUME", request=1, epoch=1, head=head, **bytes_)  # type: ignore[arg-type]
    slot.expect("READY")
    assert events == [("ada", layby.Captured(503, b"abc", True, "client_gone"))]
    slot.request(2)
    slot.expect("RELAY")
    slot.expect("READY")
    end(slot, 2, 1, status=None, ended="origin_failed")
    slot.expect("READY")
    assert events[1][1] == layby.Captured(None, b"", False, "origin_failed")


@pytest.mark.parametrize("mode", ["wsgi", "coroutine"])
def test_on_done_may_wait_and_may_be_a_coroutine(start: Start, mode: str) -> None:
    seen: list[str] = []

    async def done(captured: layby.Captured) -> None:
        seen.append((await layby.get("http://a.example/")).text)
        seen.append(layby.get("http://b.example/").result().text)

    def plain(environ: dict[str, Any], start_response: Any) -> Any:
        fetch = layby.get("http://llm.example/")
        return layby.stream(fetch, on_done=done)(environ, start_response)

    async def coroutine(environ: dict[str, Any]) -> Answer:
        return Streamed(layby.stream(layby.get("http://llm.example/"), on_done=done))

    [slot] = start(plain if mode == "wsgi" else coroutine, mode=mode)
    slot.request(1)
    ready(slot, slot.expect("RELAY"))
    end(slot, 1, 1)
    epoch = 1
    if mode == "coroutine":
        assert slot.expect("PARK").epoch == 1
        epoch = 2
        slot.results("RESUME", 1, 2, response(b"a"), body=b"a")
    else:
        assert slot.expect("HOLD").epoch == 1
        slot.results("RESULTS", 1, 1, response(b"a"), body=b"a")
    assert slot.expect("HOLD").epoch == epoch
    slot.results("RESULTS", 1, epoch, response(b"b"), body=b"b")
    assert slot.expect("READY").epoch == epoch
    assert seen == ["a", "b"]


@pytest.mark.parametrize("mode", ["wsgi", "coroutine"])
def test_an_on_done_that_fails_or_is_cancelled_ends_there(
    start: Start, caplog: Any, mode: str
) -> None:
    def done(captured: layby.Captured) -> None:
        if captured.body == b"wait":
            layby.sleep(1).result()
        raise ValueError("no room for it")

    def plain(environ: dict[str, Any], start_response: Any) -> Any:
        stream = layby.stream(layby.get("http://llm.example/"), on_done=done)
        return stream(environ, start_response)

    async def coroutine(environ: dict[str, Any]) -> Answer:
        return Streamed(layby.stream(layby.get("http://llm.example/"), on_done=done))

    [slot] = start(plain if mode == "wsgi" else coroutine, mode=mode)
    slot.request(1)
    ready(slot, slot.expect("RELAY"))
    end(slot, 1, 1)
    slot.expect("READY")
    assert "on_done of layby.stream failed" in caplog.text
    assert "no room for it" in caplog.text
    caplog.clear()
    slot.request(2)
    ready(slot, slot.expect("RELAY"))
    end(slot, 2, 1, b"wait")
    slot.expect("HOLD")
    slot.send("CANCEL", request=2, epoch=1)
    slot.expect("READY")
    assert caplog.text.count("failed") == 0


@pytest.mark.parametrize("said", [{"ended": "soon"}, {"body": [0, 9]}, {"body": None}])
def test_an_end_that_is_none_ends_the_slot(start: Start, events: Events, said: Any) -> None:
    [slot] = start(app(events, mode="wsgi"))
    slot.request(1)
    ready(slot, slot.expect("RELAY"))
    end(slot, 1, 1, **said)
    assert slot.closed()
    assert events == []


def test_a_head_needs_no_fetch(start: Start, events: Events) -> None:
    [slot] = start(app(events, mode="wsgi"))
    slot.request(1, REQUEST_METHOD="HEAD")
    frame, body = slot.answer()
    assert (frame.aux, body) == (200, b"")
    assert 1 not in _relay._waiting


@pytest.mark.parametrize("status", [200, 429])
def test_a_middleware_that_wants_the_body_gets_it(
    start: Start, events: Events, status: int
) -> None:
    inner = app(events, mode="wsgi", capture=2)

    def outer(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        for part in inner(environ, start_response):
            yield bytes(part).upper()

    [slot] = start(outer)
    slot.request(1)
    slot.expect("HOLD")
    slot.results("RESULTS", 1, 0, response(b"abc", status=status), body=b"abc")
    frame, body = slot.answer()
    captured = events[0][1]
    if status == 200:
        assert (frame.aux, body) == (200, b"ABC")
        assert captured == layby.Captured(200, b"ab", True, "complete")
    else:
        # It is too late for the origin's status, and the answer must not be taken for a 200.
        assert frame.aux == 500
        assert captured == layby.Captured(429, b"ab", True, "origin_failed")


def test_a_client_that_leaves_meanwhile_is_told_of(start: Start, events: Events) -> None:
    inner = app(events, mode="wsgi")

    def outer(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        return map(bytes, inner(environ, start_response))

    [slot] = start(outer)
    slot.request(1)
    slot.expect("HOLD")
    slot.send("CANCEL", request=1)
    slot.expect("READY")
    assert events == [("ada", layby.Captured(None, b"", False, "client_gone"))]


def test_a_fetch_that_was_made_already_is_not_made_again(start: Start) -> None:
    def plain(environ: dict[str, Any], start_response: Any) -> Any:
        fetch = layby.post("http://pay.example/charge")
        answer = layby.stream(fetch)
        fetch.result()
        return answer(environ, start_response)

    [slot] = start(plain)
    slot.request(1)
    slot.expect("HOLD")
    slot.results("RESULTS", 1, 0, response(b"abc"), body=b"abc")
    assert slot.answer()[1] == b"abc"


def flask_app(events: Events, url: str) -> Any:
    application = flask.Flask("streams")

    @application.get("/")
    def view() -> Any:
        def done(captured: layby.Captured) -> None:
            events.append((flask.g.user, captured))

        flask.g.user = "ada"
        answer = layby.stream(layby.get(url), on_done=done)
        answer.set_cookie("seen", "1")
        return answer

    @application.after_request
    def after(answer: Any) -> Any:
        answer.headers["X-After"] = "yes"
        return answer

    return application


def test_flask_answers_so_too(start: Start, events: Events) -> None:
    [slot] = start(flask_app(events, "http://llm.example/"))
    slot.request(1)
    frame = slot.expect("RELAY")
    said = json.loads(frame.head)
    assert said["headers"] == [["Set-Cookie", "seen=1; Path=/"], ["X-After", "yes"]]
    ready(slot, frame)
    end(slot, 1, 1, b"abc")
    slot.expect("READY")
    assert events == [("ada", layby.Captured(200, b"abc", False, "complete"))]


@pytest.fixture(params=["httpx", "standard library"])
def client(request: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    from layby import _direct

    monkeypatch.setattr(_direct, "_has_httpx", lambda: request.param == "httpx")
    return str(request.param)


def call(application: Any) -> tuple[str, list[tuple[str, str]], Any]:
    started: list[Any] = []
    body = application(
        {"REQUEST_METHOD": "GET"}, lambda status, headers: started.extend((status, headers))
    )
    return started[0], started[1], body


@pytest.mark.usefixtures("client")
def test_outside_layby_it_is_streamed_in_place(origin: Origin, events: Events) -> None:
    def done(captured: layby.Captured) -> None:
        events.append((threading.current_thread().name, captured))

    fetch = layby.post(f"{origin.url}/echo", content=b"x" * 100_000)
    status, headers, body = call(layby.stream(fetch, on_done=done, capture=5))
    assert status == "200 OK"
    assert ("Content-Length", "100000") in headers
    assert b"".join(body) == b"x" * 100_000
    body.close()
    here = threading.current_thread().name
    assert events == [(here, layby.Captured(200, b"xxxxx", True, "complete"))]


@pytest.mark.usefixtures("client")
def test_the_status_is_the_origins(origin: Origin, events: Events) -> None:
    status, _, body = call(layby.stream(layby.get(f"{origin.url}/status/429")))
    assert status == "429 Too Many Requests"
    assert b"".join(body) == b"hello"


@pytest.mark.usefixtures("client")
def test_it_comes_as_it_is_sent_and_a_client_may_leave(origin: Origin, events: Events) -> None:
    stream = layby.stream(
        layby.get(f"{origin.url}/drips"), on_done=lambda captured: events.append(("", captured))
    )
    _, _, body = call(stream)
    assert next(body).startswith(b".")
    body.close()
    origin.released.set()
    [(_, captured)] = events
    assert (captured.status, captured.body[:1], captured.ended) == (200, b".", "client_gone")


@pytest.mark.usefixtures("client")
def test_an_origin_that_fails_on_the_way_is_seen(origin: Origin, events: Events) -> None:
    stream = layby.stream(
        layby.get(f"{origin.url}/cut"), on_done=lambda captured: events.append(("", captured))
    )
    _, _, body = call(stream)
    with pytest.raises(Exception, match=r"closed|early"):
        b"".join(body)
    body.close()
    assert events == [("", layby.Captured(200, b"only this", False, "origin_failed"))]


@pytest.mark.usefixtures("client")
def test_an_origin_that_does_not_answer_is_a_502_or_504(origin: Origin, events: Events) -> None:
    for url, status in (("http://127.0.0.1:1/", "502"), (f"{origin.url}/stalls", "504")):
        fetch = layby.get(url, timeout=0.3)
        stream = layby.stream(fetch, on_done=lambda captured: events.append(("", captured)))
        said, _, body = call(stream)
        assert said.startswith(status)
        assert b"".join(body)
        body.close()
        assert events.pop()[1] == layby.Captured(None, b"", False, "origin_failed")


def test_flask_outside_layby(origin: Origin, events: Events) -> None:
    client = flask_app(events, f"{origin.url}/echo").test_client()
    answer = client.get("/")
    assert (answer.status_code, answer.headers["X-After"]) == (200, "yes")
    answer.close()
    assert events[0][1].ended == "complete"


def test_what_cannot_be_streamed_is_said_at_once(start: Start) -> None:
    sleep = layby.sleep(0)
    with pytest.raises(TypeError, match="'Sleep'"):
        layby.stream(sleep)  # type: ignore[arg-type]
    sleep.result()
    with pytest.raises(ValueError, match="capture"):
        layby.stream(layby.get("http://a.example/"), capture=-1)

    def too_large(environ: dict[str, Any], start_response: Any) -> Any:
        fetch = layby.post("http://a.example/", content=b"x" * (1 << 20) + b"x")
        try:
            layby.stream(fetch)
        except layby.TooLarge as error:
            start_response("200 OK", [])
            return [str(error).encode()]
        raise AssertionError

    [slot] = start(too_large)
    slot.request(1)
    assert b"more than 1048576 bytes" in slot.answer()[1]


async def _on_a_loop(url: str) -> None:
    with pytest.raises(layby.NotInASlot):
        layby.stream(layby.get(url))


def test_a_loop_is_not_blocked() -> None:
    import asyncio

    asyncio.run(_on_a_loop("http://127.0.0.1:1/"))
