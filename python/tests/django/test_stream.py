"""`layby.stream` as the answer of a Django view."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextvars import Context
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client, override_settings
from django.urls import path
from django.utils import translation
from stepper import environ

import layby
from layby._job import Job, tls
from layby._relay import Handover

ended: list[Any] = []


class _Origin(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(201)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Set-Cookie", "origin=1; Path=/")
        self.send_header("Set-Cookie", "other=2")
        self.send_header("X-Frame-Options", "ALLOWALL")
        self.end_headers()
        self.wfile.write(b"data: 1\n\ndata: 2\n\n")

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def origin() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), _Origin)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


def answer(request: Any) -> Any:
    translation.activate("de")

    def done(captured: layby.Captured) -> None:
        name = User.objects.values_list("username", flat=True).get(username="user7")
        ended.append((name, translation.get_language(), captured))

    url = request.GET.get("url", "http://llm.example/")
    response = layby.stream(layby.get(url), on_done=done)
    response["X-View"] = "seen"
    response.set_cookie("mine", "1")
    return response


async def asynchronous(request: Any) -> Any:
    await layby.sleep(0.0)
    return answer(request)


urlpatterns = [path("sync/", answer), path("async/", asynchronous)]

SETTINGS: dict[str, Any] = {
    "ROOT_URLCONF": __name__,
    "MIDDLEWARE": [
        "django.middleware.gzip.GZipMiddleware",
        "django.middleware.http.ConditionalGetMiddleware",
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.middleware.locale.LocaleMiddleware",
        "django.middleware.common.CommonMiddleware",
        "django.middleware.clickjacking.XFrameOptionsMiddleware",
    ],
}


class Waiter:
    max_plan = 1 << 20


def in_slot(where: str) -> tuple[Job, Any]:
    """The job and response of the view in a slot, where what it waits for is there at once."""
    from django.core.handlers.wsgi import WSGIHandler

    from layby.django import application

    request = environ(where, headers={"Accept-Encoding": "gzip", "Accept-Language": "fr"})
    job = Job(request=1, epoch=0, environ=request, context=Context(), slot=0)
    with override_settings(**SETTINGS):
        waiter: Any = Waiter()
        tls.job, tls.waiter = job, waiter
        try:
            coroutine = job.context.run(application(WSGIHandler()), request)
            value = None
            while True:
                try:
                    value = job.context.run(coroutine.send, value).outside(None)
                except StopIteration as stop:
                    return job, stop.value
        finally:
            tls.job = tls.waiter = None


@pytest.mark.parametrize("where", ["/sync/", "/async/"])
def test_in_a_slot_it_goes_through_the_middleware_untouched(database: None, where: str) -> None:
    ended.clear()
    job, response = in_slot(where)
    assert not response.quick_close
    first = next(iter(response))
    assert type(first) is Handover
    frame = first.relay.begin(job, response.headers)
    said = json.loads(frame[24:])
    headers = {name.lower(): value for name, value in said["headers"]}
    assert headers["x-view"] == "seen"
    assert headers["x-frame-options"] == "DENY"
    assert headers["set-cookie"].startswith("mine=1")
    assert headers["vary"] == "Accept-Language"
    assert headers["content-language"] == "de"
    assert not {"content-type", "content-length", "content-encoding"} & headers.keys()
    response.close()
    # What is done at the end knows what the view knew.
    tls.job = job
    try:
        first.relay.finish(layby.Captured(200, b"x", False, "complete"))
    finally:
        tls.job = None
    assert ended == [("user7", "de", layby.Captured(200, b"x", False, "complete"))]


@pytest.mark.parametrize("where", ["/sync/", "/async/"])
def test_outside_layby_it_is_streamed_in_place(database: None, origin: str, where: str) -> None:
    ended.clear()
    with override_settings(**SETTINGS):
        response: Any = Client().get(f"{where}?url={origin}")
        assert response.status_code == 201
        assert response["Content-Type"] == "text/event-stream"
        assert response["X-View"] == "seen"
        assert response["X-Frame-Options"] == "ALLOWALL"
        assert {name: cookie.value for name, cookie in response.cookies.items()} == {
            "origin": "1",
            "other": "2",
            "mine": "1",
        }
        assert b"".join(response.streaming_content) == b"data: 1\n\ndata: 2\n\n"
    content = b"data: 1\n\ndata: 2\n\n"
    assert ended == [("user7", "de", layby.Captured(201, content, False, "complete"))]
