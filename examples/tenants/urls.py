"""A view that writes and reads rows of its tenant around a wait, in both ways to write it."""

from __future__ import annotations

import layby
from django.db import connection
from django.http import HttpRequest, JsonResponse
from django.urls import path


def write(request: HttpRequest) -> None:
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO notes (reference) VALUES (%s)", [request.GET["reference"]])


def read(request: HttpRequest) -> JsonResponse:
    """Every row of the tenant."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT tenant, reference FROM notes")
        return JsonResponse({"rows": cursor.fetchall()})


async def note(request: HttpRequest) -> JsonResponse:
    write(request)
    await layby.get(request.GET["url"])
    return read(request)


def sync_note(request: HttpRequest) -> JsonResponse:
    write(request)
    layby.get(request.GET["url"]).result()
    return read(request)


urlpatterns = [path("note", note), path("sync-note", sync_note)]
