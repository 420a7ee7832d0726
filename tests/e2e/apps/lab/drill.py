"""Views of the fault drill: bodies both ways that can be checked, and ways for a worker to fail."""

from __future__ import annotations

import hashlib
import os
import random
import re
import time

from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt

from lab.models import Trace
from lab.pieces import PIECE, pieces

# What this process never gives back.
leaked: list[bytes] = []


@csrf_exempt
def store(request: HttpRequest) -> HttpResponse:
    """Says what it was sent, and writes down that it was."""
    digest, size = hashlib.sha256(), 0
    while piece := request.read(PIECE):
        digest.update(piece)
        size += len(piece)
    Trace.objects.create(reference=request.GET["reference"], event="stored", pid=os.getpid())
    return JsonResponse({"size": size, "sha256": digest.hexdigest()})


def send(request: HttpRequest) -> StreamingHttpResponse:
    return StreamingHttpResponse(
        pieces(int(request.GET["seed"]), int(request.GET["size"])),
        content_type="application/octet-stream",
    )


def leak(request: HttpRequest) -> HttpResponse:
    leaked.append(random.randbytes(int(request.GET["bytes"])))
    return HttpResponse("leaked")


def sleep(request: HttpRequest) -> HttpResponse:
    """Stuck, but other threads of the process can run."""
    Trace.objects.create(reference=request.GET["reference"], event="stuck", pid=os.getpid())
    time.sleep(float(request.GET["seconds"]))
    return HttpResponse("awake")


def spin(request: HttpRequest) -> HttpResponse:
    """Stuck in C with the interpreter's lock: no other thread of the process can run."""
    Trace.objects.create(reference=request.GET["reference"], event="stuck", pid=os.getpid())
    re.match(r"(a+)+$", "a" * int(request.GET["steps"]) + "b")
    return HttpResponse("done")


urlpatterns = [
    path("store", store),
    path("send", send),
    path("leak", leak),
    path("sleep", sleep),
    path("spin", spin),
]
