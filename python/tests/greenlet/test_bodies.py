"""greenlet mode: bodies that come later, files, and answers of other servers."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import flask
from fakegateway import LAZY, response
from stories import PINNED, Start

import layby

MULTIPART = (
    b'--x\r\nContent-Disposition: form-data; name="photo"; filename="a.jpg"\r\n\r\nabc\r\n--x--\r\n'
)


def application() -> flask.Flask:
    app = flask.Flask("uploads")

    @app.post("/photo")
    def photo() -> str:
        if "Authorization" not in flask.request.headers:
            flask.abort(401)
        file = flask.request.files["photo"]
        return f"{file.filename} {file.read().decode()}"

    @app.post("/async")
    async def asynchronous() -> str:
        file = await layby.read_uploaded_file(flask.request, "photo")
        return f"{file.filename} {file.read().decode()}"

    @app.get("/stream")
    def stream() -> Any:
        def done(captured: layby.Captured) -> None:
            app.config["DONE"] = captured, layby.get("http://a.example/").result().text

        layby.get("http://a.example/").result()
        return layby.stream(layby.get("http://llm.example/"), on_done=done)

    @app.get("/file")
    def file() -> Any:
        return flask.send_file(Path(__file__), conditional=True)

    return app


def test_flask_parks_for_an_upload_when_it_reads_it(start: Start) -> None:
    [slot] = start(application())
    kind = {"CONTENT_TYPE": "multipart/form-data; boundary=x", "REQUEST_METHOD": "POST"}
    slot.request(1, "/photo", flags=LAZY, CONTENT_LENGTH=str(5 << 30), **kind)
    assert slot.answer()[0].aux == 401
    for request, announced in ((2, {"CONTENT_LENGTH": str(len(MULTIPART))}), (3, {})):
        slot.request(request, "/photo", flags=LAZY, HTTP_AUTHORIZATION="yes", **kind, **announced)
        frame = slot.expect("PARK")
        assert (frame.flags, frame.head) == (LAZY | PINNED, b"")
        # The slot is free.
        slot.request(9, "/nowhere")
        assert slot.answer()[0].aux == 404
        slot.send("RESUME", request=request, epoch=1, file=MULTIPART)
        assert slot.answer()[1] == b"a.jpg abc"


def test_an_async_view_of_flask_parks_for_it_too(start: Start) -> None:
    [slot] = start(application())
    slot.request(
        1,
        "/async",
        flags=LAZY,
        REQUEST_METHOD="POST",
        CONTENT_TYPE="multipart/form-data; boundary=x",
        CONTENT_LENGTH=str(len(MULTIPART)),
    )
    assert slot.expect("PARK").flags == LAZY | PINNED
    slot.send("RESUME", request=1, epoch=1, file=MULTIPART)
    assert slot.answer()[1] == b"a.jpg abc"


def test_a_stream_after_a_park(start: Start) -> None:
    app = application()
    one, two = start(app, slots=2)
    one.request(1, "/stream")
    one.expect("PARK")
    one.results("RESUME", 1, 1, response())
    frame = one.expect("RELAY")
    assert frame.epoch == 1
    one.expect("READY")
    end = {"status": 200, "body": [0, 3], "truncated": False, "ended": "complete"}
    two.send("RESUME", request=1, epoch=2, head=json.dumps({"relay": end}).encode(), body=b"abc")
    # What comes after the answer waits in place.
    assert two.expect("HOLD").epoch == 2
    two.results("RESULTS", 1, 2, response(b"x"), body=b"x")
    two.expect("READY")
    assert app.config["DONE"] == (layby.Captured(200, b"abc", False, "complete"), "x")


state = threading.local()


def test_named_thread_locals_are_there_at_the_end_of_a_stream(start: Start) -> None:
    seen: list[str] = []

    def done(captured: layby.Captured) -> None:
        seen.append(getattr(state, "user", "nobody"))

    def plain(environ: dict[str, Any], start_response: Any) -> Any:
        user = environ["PATH_INFO"].removeprefix("/")
        if user:
            state.user = user
        return layby.stream(layby.get("http://llm.example/"), on_done=done)(environ, start_response)

    one, two = start(plain, slots=2, thread_locals=(f"{__name__}.state",))
    for request, path in ((1, "/ada"), (2, "/"), (3, "/bob")):
        one.request(request, path)
        one.expect("RELAY")
        one.expect("READY")
    end = {"status": 200, "body": [0, 0], "truncated": False, "ended": "complete"}
    for request in (3, 2, 1):
        head = json.dumps({"relay": end}).encode()
        two.send("RESUME", request=request, epoch=1, head=head)
        two.expect("READY")
    assert seen == ["bob", "nobody", "ada"]


def test_flask_hands_files_over(start: Start) -> None:
    content = Path(__file__).read_bytes()
    [slot] = start(application())
    for request, headers, expected in (
        (1, {}, content),
        (2, {"HTTP_RANGE": "bytes=3-9"}, content[3:10]),
        (3, {"HTTP_RANGE": "bytes=7-"}, content[7:]),
    ):
        slot.request(request, "/file", **headers)
        frame, descriptor, offset, length = slot.file_answer()
        assert os.pread(descriptor, length, offset) == expected
        assert frame.aux == (206 if headers else 200)
        assert dict(frame.headers)["Content-Length"] == str(len(expected))
        os.close(descriptor)
