"""A view for every recipe. Each checks its own state before and after everything that waits."""

from __future__ import annotations

import asyncio
import functools
import json
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator

import httpx
import layby
import layby.httpx
import layby.requests
import requests
from asgiref.sync import sync_to_async
from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.db import transaction
from django.http import (
    FileResponse,
    HttpRequest,
    HttpResponse,
    HttpResponseBase,
    StreamingHttpResponse,
)

from mixed.state import watched


class Boom(Exception):
    """A view's own failure."""


# Without a wait of its own.


def plain(request: HttpRequest) -> HttpResponse:
    with watched(request) as own:
        return own.answer()


@login_required
def private(request: HttpRequest) -> HttpResponse:
    with watched(request) as own:
        return own.answer()


def form(request: HttpRequest) -> HttpResponse:
    """A POST that was read before the view began; nothing waits."""
    with watched(request) as own:
        return own.answer(digest=own.digest(request.body))


# Awaited.


async def get(request: HttpRequest) -> HttpResponse:
    with watched(request) as own:
        messages.info(request, own.nonce)
        own.heard(await layby.get(own.url("get")), "get")
        told = [str(message) for message in messages.get_messages(request)]
        return own.answer(told=told)


async def gather(request: HttpRequest) -> HttpResponse:
    """Joins of all kinds, two parks."""
    with watched(request) as own:
        both, some, _ = await layby.gather(
            layby.gather(layby.get(own.url("a")), layby.post(own.url("b"), json={})),
            layby.gather(
                layby.get(own.url("c")), layby.get(own.url("d")), layby.sleep(1), join="any"
            ),
            layby.sleep(0.002),
        )
        own.heard(both[0], "a")
        own.heard(both[1], "b")
        for label, response in zip("cd", some, strict=False):
            if response is not None:
                own.heard(response, label)
        own.look()
        first = await layby.gather(
            layby.get(own.url("e") + "&status=503"), layby.get(own.url("f")), join="first_ok"
        )
        own.heard(first[1], "f")
        return own.answer()


async def sleep(request: HttpRequest) -> HttpResponse:
    with watched(request) as own:
        for _ in range(3):
            await layby.sleep(0.005)
            own.look()
        return own.answer()


async def shielded(request: HttpRequest) -> HttpResponse:
    with watched(request) as own:
        with layby.shield():
            own.heard(await layby.get(own.url("shield")), "shield")
            own.note("seen through")
        return own.answer()


async def raises(request: HttpRequest) -> HttpResponse:
    with watched(request) as own:
        own.heard(await layby.get(own.url()))
        raise Boom(own.nonce)


async def atomic(request: HttpRequest) -> HttpResponse:
    """Waits in place, in its transaction."""
    with watched(request) as own:
        with transaction.atomic():
            own.note("in a transaction")
            own.heard(await layby.get(own.url()))
            own.look()
        try:
            with transaction.atomic():
                own.note("rolled back")
                raise Boom
        except Boom:
            pass
        return own.answer()


async def ledger(request: HttpRequest) -> HttpResponse:
    """A POST that moves money, as it were."""
    with watched(request) as own:
        digest = own.digest(request.body)
        own.note("paying")
        charged = await layby.post(own.url("pay"), content=request.body)
        own.heard(charged, "pay")
        if own.digest(charged.json()["body"].encode("latin-1")) != digest:
            raise Boom("another body came back")
        own.note("paid")
        return own.answer(digest=digest)


async def last_words(request: HttpRequest) -> HttpResponse:
    """Waits in every way once it is over, also when that is because its client has left."""
    with watched(request) as own:
        try:
            own.heard(await layby.get(own.url()))
        finally:
            with layby.shield():
                await layby.sleep(0.002)
                own.look()
                async with layby.io:
                    own.look(thread=False)
                    await asyncio.sleep(0.002)
                async with layby.parallel() as ops:
                    ops.run(own.note, "last words")
                own.look()
        return own.answer()


# On the loop.


@functools.cache
def _client() -> httpx.AsyncClient:
    """One for the process: its loop is always the same."""
    # None kept, so that descriptors can be counted.
    none = httpx.Limits(max_keepalive_connections=0)
    return httpx.AsyncClient(limits=none, timeout=30, trust_env=False, verify=False)


async def io(request: HttpRequest) -> HttpResponse:
    with watched(request) as own:
        async with layby.io:
            own.look(thread=False)
            async with asyncio.timeout(20):
                own.heard(await _client().get(own.url("io")), "io")
            own.look(thread=False)
        own.look()
        try:
            async with layby.io, asyncio.timeout(0.005):
                await asyncio.sleep(30)
        except TimeoutError:
            own.note("timed out")
        return own.answer()


async def beside(request: HttpRequest) -> HttpResponse:
    """Slots for what is blocking in a block that is not."""
    with watched(request) as own:
        # What runs beside its request has the thread-locals that the request has.
        async with layby.io:
            await asyncio.gather(
                layby.in_slot(own.note, "in slot"),
                layby.in_slot(lambda: own.heard(layby.get(own.url()).result())),
                sync_to_async(own.note)("by asgiref"),
            )
            own.look(thread=False)
            await asyncio.sleep(0.002)
        return own.answer()


async def parallel(request: HttpRequest) -> HttpResponse:
    with watched(request) as own:

        async def fetches() -> None:
            own.heard(await layby.get(own.url("op")), "op")
            own.note("op")

        async with layby.parallel() as ops:
            ops.run(own.note, "op")
            ops.run(fetches)
            own.look()
        own.look()
        try:
            async with layby.parallel() as ops:
                ops.run(int, "a")
                counted = ops.run(own.rows)
        except ValueError:
            own.look()
        return own.answer(ops=len(counted.result()))


# Called.


def result(request: HttpRequest) -> HttpResponse:
    with watched(request) as own:
        own.heard(layby.get(own.url()).result())
        own.look()
        a, b = layby.gather(layby.get(own.url("a")), layby.get(own.url("b"))).result()
        own.heard(a, "a")
        own.heard(b, "b")
        return own.answer()


@functools.cache
def _session() -> requests.Session:
    session = requests.Session()
    session.trust_env = False
    session.mount("http://", layby.requests.Adapter())
    return session


def by_requests(request: HttpRequest) -> HttpResponse:
    with watched(request) as own:
        own.heard(_session().get(own.url("requests"), timeout=20), "requests")
        return own.answer()


@functools.cache
def _sync_client() -> httpx.Client:
    return httpx.Client(transport=layby.httpx.Transport(), timeout=20, trust_env=False)


def by_httpx(request: HttpRequest) -> HttpResponse:
    with watched(request) as own:
        own.heard(_sync_client().post(own.url("httpx"), content=b"x"), "httpx")
        return own.answer()


@functools.cache
def _async_client() -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=layby.httpx.Transport(), timeout=20, trust_env=False)


async def by_async_httpx(request: HttpRequest) -> HttpResponse:
    with watched(request) as own:
        own.heard(await _async_client().get(own.url("async")), "async")
        return own.answer()


# Uploads.


def upload(request: HttpRequest) -> HttpResponse:
    """A form that was here before the view was."""
    with watched(request) as own:
        digest = own.digest(request.FILES["photo"].read())
        own.heard(layby.get(own.url()).result())
        return own.answer(digest=digest, title=request.POST["title"])


async def photo(request: HttpRequest) -> HttpResponse:
    """A form that is wanted only from whom we know (`[[route]] body = "lazy"`)."""
    if not request.user.is_authenticated:
        return HttpResponse("log in first", status=401)
    with watched(request) as own:
        file = await layby.read_uploaded_file(request, "photo")
        own.look()
        digest = own.digest(file.read())
        await layby.sleep(0.002)
        return own.answer(digest=digest, title=request.POST["title"])


# Answers in pieces.


def _line(value: object) -> str:
    return json.dumps(value) + "\n"


async def stream(request: HttpRequest) -> HttpResponseBase:
    async def pieces() -> AsyncIterator[str]:
        with watched(request) as own:
            yield _line(own.look())
            own.heard(await layby.get(own.url()))
            yield _line(own.look())
            async with layby.io:
                own.look(thread=False)
                await asyncio.sleep(0.002)
            yield _line(own.look())
            async with layby.parallel() as ops:
                ops.run(own.note, "beside the stream")
            yield _line(own.report())

    await layby.sleep(0.002)
    return StreamingHttpResponse(pieces(), content_type="text/event-stream")


def lines(request: HttpRequest) -> HttpResponseBase:
    def pieces() -> Iterator[str]:
        with watched(request) as own:
            for _ in range(3):
                yield _line(own.look())
                own.heard(layby.get(own.url()).result())
            yield _line(own.report())

    return StreamingHttpResponse(pieces())


async def file(request: HttpRequest) -> HttpResponseBase:
    """A file that only this request has, and whose name is gone already."""
    with watched(request) as own:
        await layby.sleep(0.002)
        content = tempfile.TemporaryFile()  # noqa: SIM115 - the response closes it
        content.write(own.nonce.encode() * int(request.GET["times"]))
        content.seek(0)
        return FileResponse(content, content_type="text/plain", headers={"Own": own.header()})


async def relay(request: HttpRequest) -> HttpResponseBase:
    with watched(request) as own:
        own.heard(await layby.get(own.url("before")), "before")

        def done(captured: layby.Captured) -> None:
            own.note(f"stream {captured.ended}")

        answer: HttpResponseBase = layby.stream(layby.get(own.url("stream")), on_done=done)
        answer.headers["Own"] = own.header()
        return answer


VIEWS: dict[str, Callable[..., object]] = {
    view.__name__: view
    for view in (
        plain, private, form, get, gather, sleep, shielded, raises, atomic, ledger, last_words, io,
        beside, parallel, result, by_requests, by_httpx, by_async_httpx, upload, photo, stream,
        lines, file, relay,
    )
}  # fmt: skip
