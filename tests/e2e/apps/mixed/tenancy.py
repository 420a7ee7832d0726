"""One schema per tenant, as in examples/tenants, with what tenants share in `public`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from inspect import iscoroutinefunction
from typing import Any

import layby
from django.db import connection
from django.db.backends.signals import connection_created
from django.http import HttpRequest, HttpResponse
from django.utils.decorators import sync_and_async_middleware

TENANTS = ("acme", "globex", "hooli", "initech", "umbrella")
# The schema of whoever has none, or has forgotten to say so.
NOBODY = "no_tenant"

tenant: ContextVar[str] = ContextVar("tenant", default=NOBODY)


@sync_and_async_middleware
def by_host(get_response: Callable[[HttpRequest], Any]) -> Callable[[HttpRequest], Any]:
    """`acme.example.com` is the tenant `acme`."""

    def find(request: HttpRequest) -> None:
        name = request.get_host().partition(".")[0]
        tenant.set(name if name in TENANTS else NOBODY)
        use_schema()

    if iscoroutinefunction(get_response):

        async def asynchronous(request: HttpRequest) -> HttpResponse:
            find(request)
            answer: Awaitable[HttpResponse] = get_response(request)
            return await answer

        return asynchronous

    def synchronous(request: HttpRequest) -> HttpResponse:
        find(request)
        answer: HttpResponse = get_response(request)
        return answer

    return synchronous


@layby.on_resume
def use_schema(environ: dict[str, Any] | None = None) -> None:
    _set_search_path(tenant.get())


@layby.on_park
def leave_schema(environ: dict[str, Any]) -> None:
    _set_search_path(NOBODY)


def _set_search_path(schema: str) -> None:
    # A connection that is not open yet is told when it opens.
    if connection.connection is not None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT set_config('search_path', %s, false)", [f"{schema}, public"])


def _on_open(**_: object) -> None:
    use_schema()


connection_created.connect(_on_open)
