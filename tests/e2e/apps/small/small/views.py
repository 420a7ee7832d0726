import asyncio

import httpx
import layby
from django.conf import settings
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render


def page(request: HttpRequest) -> HttpResponse:
    return render(request, "page.html", {"kind": settings.KIND})


async def parked(request: HttpRequest) -> HttpResponse:
    answer = await layby.get(request.GET["url"])
    answer.raise_for_status()
    return HttpResponse("parked before")


async def recipes(request: HttpRequest) -> HttpResponse:
    """Everything that a view can wait for."""
    url = request.GET["url"]
    fetched = await layby.get(url)
    gathered = await layby.gather(layby.get(url), layby.sleep(0.01))
    async with layby.io:
        await asyncio.sleep(0.01)
        async with httpx.AsyncClient() as client:
            asynchronous = await client.get(url)
    async with layby.parallel() as ops:
        first = ops.run(len, "four")
        second = ops.run(sorted, "ba")
    seen = [
        fetched.json(),
        gathered[0].json(),
        asynchronous.json(),
        first.result(),
        second.result(),
    ]
    return JsonResponse({"seen": seen})


def in_place(request: HttpRequest) -> HttpResponse:
    return JsonResponse(layby.get(request.GET["url"]).result().json())


async def upload(request: HttpRequest) -> HttpResponse:
    photo = await layby.read_uploaded_file(request, "photo")
    return HttpResponse(f"{photo.name} {photo.size}")


# Not the decorator: that of Django 4.2 does not know of `async def` views.
upload.csrf_exempt = True  # type: ignore[attr-defined]


async def relayed(request: HttpRequest) -> HttpResponse:
    return layby.stream(layby.get(request.GET["url"]))
