"""Flask, as it is: its views wait in place, and what it does around a request is done."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator

import pytest
from conftest import Start
from fakegateway import response
from flask import Flask, Response, after_this_request, g, jsonify, request, session
from flask.typing import ResponseReturnValue

import layby
from layby import _flask


@pytest.fixture
def app() -> Flask:
    app = Flask(__name__)
    app.secret_key = "only for tests"
    return app


def test_a_view_waits_in_place_and_goes_on_with_its_request(start: Start, app: Flask) -> None:
    torn_down: list[str] = []

    @app.post("/both")
    def both() -> ResponseReturnValue:
        g.user = request.args["user"]
        session["user"] = g.user
        answers = layby.gather(layby.get("http://a/"), layby.get("http://b/")).result()
        assert request.args["user"] == g.user == session["user"]
        return jsonify(user=g.user, answers=[each.text for each in answers])

    @app.teardown_request
    def tear_down(error: BaseException | None) -> None:
        torn_down.append(g.pop("user"))

    [slot] = start(app)
    slot.request(1, "/both", REQUEST_METHOD="POST", QUERY_STRING="user=ada")
    hold = slot.expect("HOLD").plan
    assert [each["fetch"]["url"] for each in hold["gather"]] == ["http://a/", "http://b/"]
    assert hold["hold"]["reason"] == "mode"
    slot.results("RESULTS", 1, 0, response(b"one"), response(b"two", at=3), body=b"onetwo")
    frame, body = slot.answer()
    assert (frame.aux, body) == (200, b'{"answers":["one","two"],"user":"ada"}\n')
    assert any(name == "Set-Cookie" for name, _ in frame.headers)
    assert torn_down == ["ada"]


def test_a_form_and_a_file_reach_the_view(start: Start, app: Flask) -> None:
    @app.post("/upload")
    def upload() -> str:
        return f"{request.form['name']} {len(request.files['photo'].read())}"

    photo = bytes(200_000)
    body = (
        b'--x\r\nContent-Disposition: form-data; name="name"\r\n\r\nada\r\n'
        b'--x\r\nContent-Disposition: form-data; name="photo"; filename="p.png"\r\n\r\n'
        + photo
        + b"\r\n--x--\r\n"
    )
    [slot] = start(app)
    slot.request(1, "/upload", file=body, CONTENT_TYPE="multipart/form-data; boundary=x")
    assert slot.answer()[1] == b"ada 200000"


def test_a_failing_view_is_a_500_and_frees_the_slot(
    start: Start, app: Flask, caplog: pytest.LogCaptureFixture
) -> None:
    @app.get("/fails")
    def fails() -> str:
        layby.get("http://a/").result().raise_for_status()
        return "never"

    [slot] = start(app)
    slot.request(1, "/fails")
    slot.expect("HOLD")
    with caplog.at_level(logging.ERROR, app.logger.name):
        slot.results("RESULTS", 1, 0, response(status=503, reason="Service Unavailable"))
        assert slot.answer()[0].aux == 500
    assert "StatusError" in caplog.text
    slot.request(2, "/nowhere")
    assert slot.answer()[0].aux == 404


def test_a_stream_with_the_request_at_hand_waits_in_place(start: Start, app: Flask) -> None:
    from flask import stream_with_context

    ended: list[bool] = []

    @app.get("/stream")
    def stream() -> Response:
        @after_this_request
        def mark(answer: Response) -> Response:
            answer.headers["X-Seen"] = "yes"
            return answer

        def parts() -> Iterator[str]:
            try:
                yield "a"
                yield layby.get("http://b/").result().text
                yield request.args["last"]
            finally:
                ended.append(True)

        return Response(stream_with_context(parts()))

    [slot] = start(app)
    slot.request(1, "/stream", QUERY_STRING="last=c")
    first = slot.expect("ANSWER")
    assert ("X-Seen", "yes") in first.headers
    body = first.body
    while (frame := slot.frame()).type == "BODY":
        body += frame.body
    assert frame.type == "HOLD"
    slot.results("RESULTS", 1, 0, response(b"b"), body=b"b")
    while True:
        frame = slot.expect("BODY")
        body += frame.body
        if not frame.flags & 0x02:
            break
    assert body == b"abc"
    assert ended == [True]


def test_an_asynchronous_view_keeps_its_loop_though_its_module_uses_layby(
    start: Start, app: Flask
) -> None:
    _flask.install()

    @app.get("/both")
    async def both() -> str:
        await asyncio.sleep(0.001)
        answer = await layby.get("http://a/")
        await asyncio.sleep(0)
        return f"{answer.text} {request.path}"

    [slot] = start(app)
    slot.request(1, "/both")
    assert slot.expect("HOLD").plan["gather"][0]["fetch"]["url"] == "http://a/"
    slot.results("RESULTS", 1, 0, response(b"one"), body=b"one")
    assert slot.answer()[1] == b"one /both"
