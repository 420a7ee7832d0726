"""Flask in greenlet mode: its views, synchronous or not, park."""

from __future__ import annotations

import asyncio
import threading
import types
from collections.abc import Iterator

import flask
import pytest
from asgiref.sync import sync_to_async
from fakegateway import LOCAL, PINNED, Connection
from stories import Start, go_on, hold, park, resume, text

import layby
from layby._drive import NO_ASYNCIO
from layby.flask import on_event_loop

application = flask.Flask(__name__)
application.secret_key = "only for tests"


@application.get("/sync/<name>")
def sync(name: str) -> str:
    flask.g.name = name
    flask.session["name"] = name
    layby.sleep(1).result()
    url = flask.url_for("sync", name="x")
    return f"{flask.g.name} {flask.session['name']} {flask.request.path} {url}"


@application.get("/async/<name>")
async def asynchronous(name: str) -> str:
    thread = threading.get_ident()
    flask.g.name = name
    await layby.sleep(1)
    assert threading.get_ident() == thread
    return f"{flask.g.name} {flask.request.path}"


@application.get("/template/<name>")
def template(name: str) -> str:
    # The page parks in the middle of its rendering.
    return flask.render_template_string(
        "{{ request.path }} {{ wait() }} {{ g.name }}",
        wait=lambda: layby.sleep(1).result(),
        name=setattr(flask.g, "name", name),
    )


@application.get("/stream/<name>")
def stream(name: str) -> flask.Response:
    @flask.stream_with_context
    def parts() -> Iterator[str]:
        for number in range(2):
            layby.sleep(1).result()
            yield f"{flask.request.path} {number} "

    return flask.Response(parts())


@application.get("/wrong")
def wrong() -> str:
    layby.sleep(1).result()
    flask.abort(418)


@application.get("/loop")
async def uses_asyncio() -> str:
    await asyncio.sleep(0.001)
    return "no error"


@application.get("/marked")
@on_event_loop
async def marked() -> str:
    await asyncio.sleep(0.001)
    return f"slept {await layby.sleep(1)}"


@application.get("/io")
async def rides() -> str:
    thread = threading.get_ident()
    async with layby.io:
        await asyncio.sleep(0.001)
        on_loop = threading.get_ident()
        count = await sync_to_async(threading.get_ident)()
    assert threading.get_ident() == thread != on_loop
    return f"{flask.request.path} {count == thread}"


async def helper() -> float:
    await asyncio.sleep(0)
    return await layby.sleep(1)


# As if it stood in a module that has nothing of layby, but calls one that has.
elsewhere: dict[str, object] = {"helper": types.SimpleNamespace(sleep=helper)}
exec("async def other():\n    return f'slept {await helper.sleep()} on a loop'", elsewhere)
application.add_url_rule("/elsewhere", view_func=elsewhere["other"])  # type: ignore[arg-type]


def interleave(start: Start, path: str, epochs: int = 1) -> list[str]:
    """Two requests by turns; their answers."""
    [slot] = start(application)
    for request, name in ((1, "ann"), (2, "bob")):
        slot.request(request, f"/{path}/{name}", HTTP_HOST="shop.example")
        park(slot, request)
    answers = []
    for request in (1, 2):
        resume(slot, request)
        answers.append(text(slot))
    return answers


def test_a_synchronous_view(start: Start) -> None:
    assert interleave(start, "sync") == [
        "ann ann /sync/ann /sync/x",
        "bob bob /sync/bob /sync/x",
    ]


def test_an_asynchronous_view_is_stepped_by_its_slot(start: Start) -> None:
    assert interleave(start, "async") == ["ann /async/ann", "bob /async/bob"]


def test_in_the_middle_of_a_template(start: Start) -> None:
    assert interleave(start, "template") == ["/template/ann 1.0 ann", "/template/bob 1.0 bob"]


def test_a_stream_with_its_request_context(start: Start) -> None:
    [slot] = start(application)
    for request, name in ((1, "ann"), (2, "bob")):
        slot.request(request, f"/stream/{name}", HTTP_HOST="shop.example")
        park(slot, request)
    for request, name in ((2, "bob"), (1, "ann")):
        resume(slot, request)
        assert slot.expect("ANSWER").body == f"/stream/{name} 0 ".encode()
        park(slot, request, 1)
    for request, name in ((1, "ann"), (2, "bob")):
        resume(slot, request, 2)
        assert slot.expect("BODY").body == f"/stream/{name} 1 ".encode()
        slot.expect("BODY")
        slot.expect("READY")


def test_an_abort_after_a_park(start: Start) -> None:
    [slot] = start(application)
    slot.request(1, "/wrong", HTTP_HOST="shop.example")
    park(slot, 1)
    resume(slot, 1)
    assert slot.answer()[0].aux == 418


def test_asyncio_has_no_loop_in_a_slot_and_is_told_so(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    [slot] = start(application)
    slot.request(1, "/loop", HTTP_HOST="shop.example")
    assert slot.answer()[0].aux == 500
    assert NO_ASYNCIO in caplog.text


def test_views_of_modules_without_layby_keep_their_loop_and_wait_in_place(start: Start) -> None:
    [slot] = start(application)
    slot.request(1, "/elsewhere", HTTP_HOST="shop.example")
    assert hold(slot, 1)["reason"] == "unsupported"
    go_on(slot, 1)
    assert text(slot) == "slept 1.0 on a loop"


def test_an_asynchronous_view_rides_the_loop_and_parks_meanwhile(
    start: Start, control: Connection
) -> None:
    [slot] = start(application)
    slot.request(1, "/io", HTTP_HOST="shop.example")
    assert slot.expect("PARK").flags == PINNED | LOCAL
    # What it calls synchronously is run in a slot, not on a thread more.
    call = control.expect("CALL")
    slot.send("RUN", request=1, epoch=0, aux=call.aux)
    slot.expect("READY")
    control.expect("WANT")
    slot.send("RESUME", request=1, epoch=1)
    assert text(slot) == "/io True"


def test_a_view_may_be_left_on_its_loop(start: Start) -> None:
    [slot] = start(application)
    slot.request(1, "/marked", HTTP_HOST="shop.example")
    assert hold(slot, 1)["reason"] == "unsupported"
    go_on(slot, 1)
    assert text(slot) == "slept 1.0"
