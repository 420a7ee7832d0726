"""Which tenant's schema a request's queries go to, also after it has waited.

The tenant is in a context variable, which travels with its request. The schema is a setting
of a database connection, which does not: a connection belongs to a slot, and serves other
requests, of other tenants, while this one is parked. So it is set at three moments:

- when a request starts, by the middleware;
- when it resumes, by `on_resume`; in between `on_park` has taken it off, so that whoever
  forgets to set one finds no tenant at all;
- when a connection is opened, by Django's signal.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from inspect import iscoroutinefunction
from typing import Any

import layby
from django.db import connection
from django.db.backends.signals import connection_created
from django.http import HttpRequest, HttpResponse, HttpResponseNotFound
from django.utils.decorators import sync_and_async_middleware

TENANTS = ("acme", "globex", "hooli", "initech", "umbrella")

_tenant: ContextVar[str] = ContextVar("tenant", default="")


@sync_and_async_middleware
def by_host(get_response: Callable[[HttpRequest], Any]) -> Callable[[HttpRequest], Any]:
    """`acme.example.com` is the tenant `acme`."""

    def find(request: HttpRequest) -> HttpResponse | None:
        name = request.get_host().partition(".")[0]
        if name not in TENANTS:
            return HttpResponseNotFound("no such tenant")
        _tenant.set(name)
        use_schema()
        return None

    if iscoroutinefunction(get_response):

        async def asynchronous(request: HttpRequest) -> HttpResponse:
            refused = find(request)
            if refused is not None:
                return refused
            answer: Awaitable[HttpResponse] = get_response(request)
            return await answer

        return asynchronous

    def synchronous(request: HttpRequest) -> HttpResponse:
        return find(request) or get_response(request)

    return synchronous


@layby.on_resume
def use_schema(environ: dict[str, Any] | None = None) -> None:
    """Have this connection's queries go to the tenant of this request."""
    _set_search_path(_tenant.get() or "no_tenant")


@layby.on_park
def leave_schema(environ: dict[str, Any]) -> None:
    """Leave the connection to the next request."""
    _set_search_path("no_tenant")


def _set_search_path(schema: str) -> None:
    # One that is not open yet is told when it opens.
    if connection.connection is not None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT set_config('search_path', %s, false)", [schema])


def _on_open(**_: object) -> None:
    use_schema()


connection_created.connect(_on_open)
