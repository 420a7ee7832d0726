"""Django's responses as a slot sends them."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import project.views
from django.http import HttpRequest, StreamingHttpResponse
from django.middleware.gzip import GZipMiddleware
from django.test import RequestFactory
from stepper import Slots

from layby._drive import drive
from layby._job import Suspend
from layby._local import wait_for
from layby._stream import in_place
from layby.django import _inplace


def test_status_headers_and_cookies_are_those_of_wsgi(slots: Slots) -> None:
    from django.test import Client

    answer = slots.get("/cookies/")
    under_wsgi = Client().get("/cookies/")
    assert answer.status == "200 OK"
    plain = [(name, value) for name, value in answer.headers if name != "Set-Cookie"]
    assert plain == list(under_wsgi.items())
    sent = [value for name, value in answer.headers if name == "Set-Cookie"]
    expected = [cookie.OutputString() for cookie in under_wsgi.cookies.values()]
    # The expiry is the second of the request.
    assert [each.split("expires")[0] for each in sent] == [
        each.split("expires")[0] for each in expected
    ]


def test_an_ordinary_response_closes_quickly(slots: Slots) -> None:
    assert slots.get("/ahello/").quick_close
    assert slots.get("/fails/").quick_close


def test_a_stream_or_a_receiver_of_request_finished_does_not(slots: Slots) -> None:
    from django.core.signals import request_finished

    assert not slots.get("/stream/").quick_close
    heard = []

    def receiver(**kwargs: Any) -> None:
        heard.append(kwargs["sender"].__name__)

    request_finished.connect(receiver)
    try:
        assert not slots.get("/ahello/").quick_close
    finally:
        request_finished.disconnect(receiver)
    assert heard == ["WSGIHandler"]
    assert slots.get("/ahello/").quick_close


def test_a_synchronous_stream(slots: Slots) -> None:
    assert slots.get("/stream/").chunks == [b"0,", b"1,", b"2,"]


def test_an_asynchronous_stream_parks_between_its_chunks(slots: Slots) -> None:
    from django.core.cache import cache

    cache.delete("async-stream-closed")
    answer = slots.get("/async-stream/", headers={"Accept-Language": "de"})
    assert answer.chunks == [b"0:True:de,", b"1:True:de,", b"2:True:de,"]
    # It parks before every chunk, and once more when it is over.
    assert answer.waits == []
    assert len(answer.slots) == 5
    assert cache.get("async-stream-closed")


def test_an_asynchronous_stream_that_is_cut_runs_its_finally(app: Any, slots: Slots) -> None:
    from django.core.cache import cache

    cache.delete("async-stream-closed")

    def first_chunk_only(environ: dict[str, Any]) -> Any:
        async def run() -> Any:
            response = await app(environ)
            parts = iter(response)
            assert next(parts).startswith(b"0:")
            response.close()
            return _Empty(response)

        return run()

    with Slots(first_chunk_only, 1) as cutting:
        assert cutting.get("/async-stream/").code == 200
    assert cache.get("async-stream-closed")


class _Empty:
    quick_close = False

    def __init__(self, response: Any) -> None:
        self.status, self.headers = response.status, response.headers

    def __iter__(self) -> Any:
        return iter(())

    def close(self) -> None:
        """Closed already."""


def test_a_stream_of_a_view_on_the_event_loop_stays_there(slots: Slots, recwarn: Any) -> None:
    import pytest

    with pytest.warns(Warning, match="must consume asynchronous iterators"):
        assert slots.get("/loop-stream/").body == b"0,1,2,"


def test_a_file_comes_whole_and_in_large_blocks(slots: Slots) -> None:
    answer = slots.get("/file/")
    content = Path(project.views.__file__).read_bytes()
    assert answer.body == content
    assert answer.header("Content-Length") == str(len(content))
    assert len(answer.chunks) == 1


class Pause(Suspend):
    """What only a stepped coroutine can wait for: one that is merely dropped cannot."""

    def encode(self, **_: Any) -> Any: ...
    def decode(self, *_: Any) -> Any: ...
    def outside(self, stepped: Any) -> None: ...


def test_a_client_that_leaves_ends_every_generator_of_a_wrapped_stream() -> None:
    ended: list[str] = []

    async def rows() -> AsyncIterator[int]:
        try:
            for number in range(9):
                yield number
        finally:
            await wait_for(Pause("here"))
            ended.append("rows")

    async def parts(request: HttpRequest) -> StreamingHttpResponse:
        async def lines() -> AsyncIterator[bytes]:
            try:
                async for _ in rows():
                    yield os.urandom(1 << 17)  # cannot be held back, as it cannot be compressed
            finally:
                await wait_for(Pause("here"))
                ended.append("lines")

        return StreamingHttpResponse(lines())

    request = RequestFactory().get("/", headers={"Accept-Encoding": "gzip"})
    response = drive(GZipMiddleware(parts)(request))
    assert response["Content-Encoding"] == "gzip"
    stream = in_place(_inplace.pieces(response))
    # The first may be a head that stands before all of the view's.
    assert next(stream)
    assert next(stream)
    stream.close()
    # Innermost first, as if each were in a block of its own.
    assert ended == ["rows", "lines"]
    assert sys.get_asyncgen_hooks() == (None, None)
