"""What belongs to one request, in every place where code keeps such things, and who checks it.

A request says in its headers what it is: user, language, time zone, tenant and a nonce. The
middleware puts that where applications do: into a context variable, a `threading.local` (named in
`[workers] thread_locals`) and Django's own settings by request. `Own` then compares, at any line
of a view, what it finds there with what its request said.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from inspect import iscoroutinefunction
from typing import Any

import layby
from django.conf import settings
from django.db import connection
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.utils import timezone, translation
from django.utils.decorators import sync_and_async_middleware

from mixed import tenancy

logger = logging.getLogger("mixed")

MONDAY = {"en": "Monday", "de": "Montag", "fr": "lundi", "es": "lunes"}

# As of old: who is at work on this thread.
current = threading.local()
nonce: ContextVar[str] = ContextVar("nonce", default="")


class Foreign(Exception):
    """A request met something that is not its own."""


def foreign(what: str) -> Foreign:
    # Said in the log, too, for a client that has left sees no answer.
    logger.error("FOREIGN: %s", what)
    return Foreign(what)


@sync_and_async_middleware
def request_state(get_response: Callable[[HttpRequest], Any]) -> Callable[[HttpRequest], Any]:
    """Put what the request said where applications look for it."""

    def begin(request: HttpRequest) -> None:
        if current.__dict__:
            raise foreign(f"a new request found {current.__dict__} on its thread")
        if "x-nonce" not in request.headers:
            return
        current.user = request.user.get_username()
        current.nonce = request.headers["x-nonce"]
        nonce.set(request.headers["x-nonce"])
        timezone.activate(request.headers["x-timezone"])

    if iscoroutinefunction(get_response):

        async def asynchronous(request: HttpRequest) -> HttpResponse:
            begin(request)
            answer: HttpResponse = await get_response(request)
            return answer

        return asynchronous

    def synchronous(request: HttpRequest) -> HttpResponse:
        begin(request)
        answer: HttpResponse = get_response(request)
        return answer

    return synchronous


class Own:
    """What one request says that it is."""

    def __init__(self, request: HttpRequest) -> None:
        headers = request.headers
        self.request = request
        self.nonce = headers["x-nonce"]
        self.tenant = request.get_host().partition(".")[0]
        self.user = headers["x-user"]
        language = headers["accept-language"]
        self.said = {
            "nonce": self.nonce,
            "tenant": self.tenant,
            "user": self.user,
            "language": language,
            "monday": MONDAY[language],
            "timezone": headers["x-timezone"],
        }

    def look(self, *, thread: bool = True) -> dict[str, str | None]:
        """What is around this line, which must be what the request said.

        Without `thread` nobody's thread-local must be here.
        """
        seen = {
            "nonce": nonce.get(),
            "tenant": tenancy.tenant.get(),
            "user": self.request.user.get_username(),
            "language": translation.get_language(),
            "monday": translation.gettext("Monday"),
            "timezone": timezone.get_current_timezone_name(),
        }
        held = {"user": self.user, "nonce": self.nonce} if thread else {}
        if seen != self.said or current.__dict__ != held:
            raise foreign(f"{self.said} saw {seen} and, on the thread, {current.__dict__}")
        return seen

    def note(self, event: str, *, thread: bool = True) -> None:
        """Write down that this line was reached, in the tenant's own table."""
        self.look(thread=thread)
        with connection.cursor() as cursor:
            cursor.execute(
                "INSERT INTO notes (reference, event, pid) VALUES (%s, %s, %s)"
                " RETURNING tenant, current_setting('search_path')",
                [self.nonce, event, os.getpid()],
            )
            where = cursor.fetchone()
        if where != (self.tenant, f"{self.tenant}, public"):
            raise foreign(f"{self.said} wrote {event!r} to {where}")

    def rows(self) -> list[list[str]]:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT tenant, event FROM notes WHERE reference = %s ORDER BY id", [self.nonce]
            )
            return [list(row) for row in cursor.fetchall()]

    def url(self, label: str = "") -> str:
        """Where to ask an origin that answers with what it was asked."""
        latency = self.request.GET.get("latency", "5")
        query = f"nonce={self.nonce}&label={label}&latency={latency}"
        return f"{settings.SERVICES}/echo?{query}"

    def heard(self, response: Any, label: str = "") -> str:
        """The origin's answer must be to what we asked, and nobody else."""
        query = response.json()["query"]
        if (query["nonce"], query["label"]) != (self.nonce, label):
            raise foreign(f"{self.said} asked for {label!r} and was told {query}")
        return label

    def digest(self, body: bytes) -> str:
        return hashlib.sha256(body).hexdigest()

    def report(self, **more: object) -> dict[str, object]:
        """All that an answer has to say."""
        return {**self.look(), "rows": self.rows(), **more}

    def answer(self, **more: object) -> JsonResponse:
        return JsonResponse(self.report(**more))

    def header(self) -> str:
        """The same, for answers whose body says something else."""
        return json.dumps(self.report())


@contextmanager
def watched(request: HttpRequest) -> Iterator[Own]:
    """Around the work of a view: it has begun, it has ended, whatever came in between."""
    own = Own(request)
    own.note("begun")
    try:
        yield own
    except layby.Cancelled:
        own.note("cancelled")
        raise
    finally:
        own.note("ended")
