"""Views that pass on what an origin streams, and write down how that ended."""

from __future__ import annotations

import os

import layby
from django.http import HttpRequest, HttpResponseBase
from django.urls import path
from django.utils import translation

from lab.models import Trace


def plain(request: HttpRequest) -> HttpResponseBase:
    return _answer(request)


async def parked(request: HttpRequest) -> HttpResponseBase:
    """After a park, so that the relay is not the request's first step."""
    await layby.sleep(0.01)
    return _answer(request)


def _answer(request: HttpRequest) -> HttpResponseBase:
    reference = request.GET["reference"]
    user = request.user.get_username() or "nobody"

    def note(captured: layby.Captured) -> None:
        seen = (captured.status, captured.body.decode(), captured.truncated, captured.ended)
        event = " ".join(map(str, (*seen, user, translation.get_language())))
        Trace.objects.create(reference=reference, event=event, pid=os.getpid())

    async def note_and_fetch(captured: layby.Captured) -> None:
        fetched = await layby.get(request.GET["then"])
        note(captured)
        Trace.objects.create(reference=reference, event=fetched.text, pid=os.getpid())

    answer: HttpResponseBase = layby.stream(
        layby.get(request.GET["url"], timeout=10),
        on_done=note_and_fetch if "then" in request.GET else note,
        capture=16,
    )
    answer.headers["Lab-View"] = "seen"
    return answer


urlpatterns = [path("plain", plain), path("parked", parked)]
