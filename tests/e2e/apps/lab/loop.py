"""Views that leave their slot for the event loop, or ask for more than one."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from threading import current_thread

import httpx
import layby
from asgiref.sync import sync_to_async
from django.db import connection, transaction
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import path
from django.utils import translation
from django.views.decorators.csrf import csrf_exempt

from lab.models import Trace


def note(request: HttpRequest, event: str) -> None:
    Trace.objects.create(reference=request.GET["reference"], event=event, pid=os.getpid())


def state(request: HttpRequest) -> dict[str, str | None]:
    """What must be the request's own, wherever it is."""
    return {"user": request.user.get_username(), "language": translation.get_language()}


def backend() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        pid: int = cursor.fetchone()[0]
        return pid


async def io(request: HttpRequest) -> HttpResponse:
    """A query, a fetch of `url` by asyncio, queries in slots beside it, a query."""
    before = [*state(request).values(), backend()]
    async with layby.io:
        inside = [*state(request).values(), current_thread().name]
        async with httpx.AsyncClient(timeout=60) as client:
            answer, *backends = await asyncio.gather(
                client.get(request.GET["url"]), layby.in_slot(backend), sync_to_async(backend)()
            )
    after = [*state(request).values(), backend()]
    seen = {"before": before, "inside": inside, "beside": backends, "after": after}
    return JsonResponse({**seen, "text": answer.text})


@csrf_exempt
async def slow(request: HttpRequest) -> HttpResponse:
    """Fetches `url` on the loop, and writes down what happened to it on the way."""
    note(request, "begun")
    try:
        async with layby.io:
            try:
                async with httpx.AsyncClient(timeout=60) as client:
                    await client.get(request.GET["url"])
            except asyncio.CancelledError:
                await sync_to_async(note)(request, "cancelled on the loop")
                raise
        note(request, "fetched")
    except layby.Cancelled:
        note(request, "cancelled")
        raise
    finally:
        note(request, "finally")
    return HttpResponse("done")


def meet(request: HttpRequest, number: int, count: int) -> dict[str, object]:
    """A query of at least 50 ms, that ends only when `count` of them have begun."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT clock_timestamp(), pg_backend_pid(), pg_sleep(0.05)")
        begun, pid, _ = cursor.fetchone()
        note(request, f"met {number}")
        for _ in range(500):
            if Trace.objects.filter(reference=request.GET["reference"]).count() >= count:
                break
            time.sleep(0.02)
        cursor.execute("SELECT clock_timestamp()")
        (ended,) = cursor.fetchone()
    return {
        "begun": begun.timestamp(),
        "ended": ended.timestamp(),
        "backend": pid,
        **state(request),
    }


async def parallel(request: HttpRequest) -> HttpResponse:
    """`count` queries side by side, that wait for `meet` of them to be under way."""
    count = int(request.GET["count"])
    async with layby.parallel() as ops:
        many = [ops.run(meet, request, number, int(request.GET["meet"])) for number in range(count)]
    return JsonResponse({"ops": [op.result() for op in many], "after": state(request)})


async def parallel_fails(request: HttpRequest) -> HttpResponse:
    """Operations that fail, leave a transaction open, or are in one."""

    def leave_open() -> None:
        transaction.atomic().__enter__()
        Trace.objects.create(reference=request.GET["reference"], event="open", pid=os.getpid())

    seen: list[str] = []
    try:
        async with layby.parallel() as ops:
            ops.run(leave_open)
            ops.run(note, request, "kept")
    except layby.Error as error:
        seen.append(str(error))
    with transaction.atomic():
        try:
            async with layby.parallel() as ops:
                ops.run(note, request, "unreachable")
        except layby.ParkRefused as error:
            seen.append(str(error))
    try:
        async with layby.parallel() as ops:
            ops.run(int, "a")
            ops.run(int, "b")
    except* ValueError as group:
        seen.append(str(len(group.exceptions)))
    return JsonResponse({"seen": seen, "in_block": connection.in_atomic_block})


async def stream(request: HttpRequest) -> StreamingHttpResponse:
    """A piece, a park of `seconds`, a query, a piece; then the lines of `url` by asyncio."""

    async def pieces() -> AsyncIterator[str]:
        try:
            yield "first "
            await layby.sleep(float(request.GET["seconds"]))
            yield f"{Trace.objects.filter(reference='nobody').count()} "
            async with layby.io, httpx.AsyncClient(timeout=60) as client:
                async with client.stream("GET", request.GET["url"]) as answer:
                    async for text in answer.aiter_text():
                        yield text
        finally:
            note(request, "closed")

    return StreamingHttpResponse(pieces(), content_type="text/event-stream")


urlpatterns = [
    path("io", io),
    path("slow", slow),
    path("parallel", parallel),
    path("parallel-fails", parallel_fails),
    path("stream", stream),
]
