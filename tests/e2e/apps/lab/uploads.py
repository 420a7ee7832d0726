"""Views on a route with `body = "lazy"`: they start at the headers."""

from __future__ import annotations

import hashlib
import os

import layby
from django.contrib.auth.models import User
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt

from lab.models import Trace


async def photo(request: HttpRequest) -> HttpResponse:
    """First who it is, then what is sent."""
    if not request.user.is_authenticated:
        return HttpResponse("log in first", status=401)
    reference = request.GET["reference"]

    def note(event: str) -> None:
        Trace.objects.create(reference=reference, event=event, pid=os.getpid())

    note("wanted")
    try:
        file = await layby.read_uploaded_file(request, "photo")
        note("here")
    except BaseException as error:
        note(type(error).__name__)
        raise
    digest = hashlib.sha256()
    for chunk in file.chunks():
        digest.update(chunk)
    return JsonResponse(
        {
            "name": file.name,
            "size": file.size,
            "sha256": digest.hexdigest(),
            "title": request.POST["title"],
            "user": request.user.get_username(),
            "users": User.objects.filter(username=request.user.get_username()).count(),
        }
    )


@csrf_exempt
async def raw(request: HttpRequest) -> HttpResponse:
    await layby.body_ready(request)
    return HttpResponse(hashlib.sha256(request.read()).hexdigest())


@csrf_exempt
async def too_early(request: HttpRequest) -> HttpResponse:
    try:
        return HttpResponse(request.body)
    except layby.BodyNotReady as error:
        return HttpResponse(str(error), status=409)


@csrf_exempt
async def refused(request: HttpRequest) -> HttpResponse:
    return HttpResponse("not you", status=403)


def synchronous(request: HttpRequest) -> HttpResponse:
    file = request.FILES["photo"]
    return HttpResponse(f"{request.POST['title']} {file.name} {file.size}")


urlpatterns = [
    path("photo", photo),
    path("raw", raw),
    path("refused", refused),
    path("synchronous", synchronous),
    path("too-early", too_early),
]
