"""Views for what the shop does not do."""

from __future__ import annotations

import os
import re
import time

import layby
from django.db import connection
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.csrf import csrf_exempt

from lab.models import Trace
from store.models import Product


async def wait(request: HttpRequest) -> HttpResponse:
    """A query, a fetch of `url`, a query; the answer is the origin's, between our two."""
    before = Product.objects.count()
    response = await layby.get(request.GET["url"], timeout=600)
    return HttpResponse(f"{before} {response.text} {Product.objects.count()}")


async def fetch(request: HttpRequest) -> HttpResponse:
    """What becomes of a fetch of `url`, by its name in Python."""
    return await _outcome(request, wait_in_place=False)


async def fetch_in_place(request: HttpRequest) -> HttpResponse:
    return await _outcome(request, wait_in_place=True)


async def _outcome(request: HttpRequest, *, wait_in_place: bool) -> HttpResponse:
    fetching = layby.get(request.GET["url"], follow_redirects="follow" in request.GET, timeout=10)
    try:
        response = fetching.result() if wait_in_place else await fetching
    except layby.FetchError as error:
        seen = {"error": type(error).__name__, "phase": error.phase, "message": str(error)}
    else:
        seen = {"status": response.status_code, "url": str(response.url)}
    return JsonResponse(seen)


@csrf_exempt
async def slow(request: HttpRequest) -> HttpResponse:
    """Fetches `url`, and writes down under `reference` what happened to it on the way."""

    def note(event: str) -> None:
        Trace.objects.create(reference=request.GET["reference"], event=event, pid=os.getpid())

    note("begun")
    try:
        await layby.get(request.GET["url"], timeout=30)
        note("fetched")
    except layby.Timeout as error:
        note(f"timeout in phase {error.phase}")
        return HttpResponse("too slow")
    except layby.Cancelled:
        note("cancelled")
        raise
    finally:
        note("finally")
    return HttpResponse("done")


def stuck(request: HttpRequest) -> HttpResponse:
    """Holds its thread for `seconds`, deaf to everything."""
    time.sleep(float(request.GET["seconds"]))
    return HttpResponse("awake")


def stuck_query(request: HttpRequest) -> HttpResponse:
    """Waits for the database for `seconds`."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_sleep(%s)", [float(request.GET["seconds"])])
    return HttpResponse("awake")


def held(request: HttpRequest) -> HttpResponse:
    """Keeps the interpreter from every other thread, for minutes."""
    re.match(r"(a+)+$", "a" * 40 + "b")
    return HttpResponse("never")
