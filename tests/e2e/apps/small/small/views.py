import layby
from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render


def page(request: HttpRequest) -> HttpResponse:
    return render(request, "page.html", {"kind": settings.KIND})


async def parked(request: HttpRequest) -> HttpResponse:
    answer = await layby.get(request.GET["url"])
    answer.raise_for_status()
    return HttpResponse("parked before")
