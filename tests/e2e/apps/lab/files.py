"""Views that answer with a file, which `path` names."""

from __future__ import annotations

from pathlib import Path

import layby
from django.http import FileResponse, HttpRequest, HttpResponseBase, StreamingHttpResponse
from django.urls import path
from django.views.decorators.gzip import gzip_page
from django_sendfile import sendfile


def plain(request: HttpRequest) -> HttpResponseBase:
    return FileResponse(Path(request.GET["path"]).open("rb"))


async def parked(request: HttpRequest) -> HttpResponseBase:
    """After a park, so that another slot answers than the one that began."""
    await layby.sleep(0.01)
    return FileResponse(Path(request.GET["path"]).open("rb"))


def part(request: HttpRequest) -> HttpResponseBase:
    """The bytes that a Range header would ask for; the view sees to that itself."""
    start, end = int(request.GET["start"]), int(request.GET["end"])
    file = Path(request.GET["path"]).open("rb")  # noqa: SIM115 - the response closes it
    size = file.seek(0, 2)
    file.seek(start)
    return StreamingHttpResponse(
        file,
        status=206,
        headers={
            "Content-Length": str(end - start + 1),
            "Content-Range": f"bytes {start}-{end}/{size}",
        },
    )


def named(request: HttpRequest) -> HttpResponseBase:
    """The file is named, and not opened: `name` is relative to the folder of such files."""
    response = sendfile(request, request.GET["name"], attachment="save" in request.GET)
    response.set_cookie("seen", "1")
    return response


urlpatterns = [
    path("plain", plain),
    path("parked", parked),
    path("part", part),
    path("gzip", gzip_page(plain)),
    path("named", named),
]
