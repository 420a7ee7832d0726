"""What `manage.py check` says of a project on layby: what keeps its requests from parking.

Nothing here breaks an application, for what cannot park waits in place. It is told before
anybody wonders why the slots are busy, with the cure. In order of their ids:

- W001, W002: a middleware that runs synchronously; below it nothing parks
- W003, W004: a database whose requests are always in a transaction
- W005, W006, W007: a setting, an asgiref or a WSGI application with which nothing parks
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from asgiref.sync import iscoroutinefunction
from django.conf import settings
from django.core.checks import CheckMessage, Warning
from django.core.exceptions import ImproperlyConfigured, MiddlewareNotUsed
from django.core.handlers.wsgi import WSGIHandler
from django.core.servers.basehttp import get_internal_wsgi_application
from django.db import connections
from django.utils.deprecation import MiddlewareMixin
from django.utils.module_loading import import_string

from layby._exceptions import AsgirefUnsupported
from layby.django import _asgiref, _inplace
from layby.django._chain import overrides_only_the_sync_call

TAG = "layby"


def check(**kwargs: Any) -> list[CheckMessage]:
    """Everything in the settings that keeps requests from parking."""
    if not _inplace.wanted():
        return [
            Warning(
                "LAYBY_INLINE_ASYNC_VIEWS is False, so no request parks.",
                hint="Remove the setting, and decorate the views that need an event loop"
                " with @layby.django.on_event_loop.",
                id="layby.W005",
            )
        ]
    return [*_middleware(), *_databases(), *_asgiref_(), *_application()]


def _middleware() -> Iterator[CheckMessage]:
    for path in settings.MIDDLEWARE:
        try:
            middleware = import_string(path)
        except ImportError:
            continue  # Django says so itself, as soon as it is to serve anything.
        reason = _why_synchronous(middleware)
        if reason is not None:
            number, why, hint = reason
            yield Warning(
                f"Middleware {path} runs synchronously ({why}): no request below it parks,"
                " all wait in place.",
                hint=hint,
                id=number,
            )


def _why_synchronous(middleware: Any) -> tuple[str, str, str] | None:
    """Id, reason and cure for a middleware below which nothing parks."""
    if overrides_only_the_sync_call(middleware):
        return (
            "layby.W002",
            "its own __call__ is synchronous, but it inherits async_capable",
            "Give it an `async def __acall__` beside `__call__`, or let it have"
            " `process_request` and `process_response` instead. Under ASGI it would fail.",
        )
    if not getattr(middleware, "async_capable", False):
        return (
            "layby.W001",
            "it is not async_capable",
            "Upgrade or replace it, or make it work in both ways: with MiddlewareMixin, or"
            " @sync_and_async_middleware. Middleware that only prepares static files or"
            " headers is often better left to the server in front.",
        )
    if not _is_coroutine_when_built(middleware):
        return (
            "layby.W002",
            "it says async_capable, but is not a coroutine function",
            "Let it call asgiref's markcoroutinefunction(self) in its __init__ if get_response"
            " is a coroutine function, and answer with a coroutine then; or set"
            " `async_capable = False`. Under ASGI it would fail.",
        )
    return None


def _is_coroutine_when_built(middleware: Any) -> bool:
    if isinstance(middleware, type) and issubclass(middleware, MiddlewareMixin):
        return True  # Most are, and need not be built to know.
    try:
        return bool(iscoroutinefunction(middleware(_get_response)))
    except MiddlewareNotUsed:
        return True
    except Exception:  # noqa: BLE001 - what fails to start is for Django to report, by starting
        return True


async def _get_response(request: Any) -> Any:
    raise AssertionError("a middleware is only built here, not called")


def _databases() -> Iterator[CheckMessage]:
    for alias, options in connections.settings.items():
        if options["ATOMIC_REQUESTS"]:
            yield Warning(
                f"ATOMIC_REQUESTS is on for database {alias!r}: Django refuses `async def`"
                " views there, and all other requests wait in place.",
                hint="Set it to False and put transaction.atomic() around what must happen as"
                " a whole, without an await in it; or mark views that park with"
                " @transaction.non_atomic_requests.",
                id="layby.W003",
            )
        if not options["AUTOCOMMIT"]:
            yield Warning(
                f"AUTOCOMMIT is off for database {alias!r}: a request that has asked it anything"
                " is in a transaction, and waits in place.",
                hint="Remove it from the settings, and use transaction.atomic() where it is"
                " needed.",
                id="layby.W004",
            )


def _asgiref_() -> Iterator[CheckMessage]:
    try:
        _asgiref.self_test()
    except AsgirefUnsupported as error:
        yield Warning(
            f"No request parks: {error}",
            hint="Install an asgiref that layby knows.",
            id="layby.W006",
        )


def _application() -> Iterator[CheckMessage]:
    try:
        application: Callable[..., Any] = get_internal_wsgi_application()
    except ImproperlyConfigured:
        return  # Who serves it is told by the server.
    if type(application) is not WSGIHandler:
        kind = f"{type(application).__module__}.{type(application).__qualname__}"
        yield Warning(
            f"WSGI_APPLICATION is not Django's own handler, but of type {kind}: layby cannot"
            " see through it, and no request parks.",
            hint="Leave it as get_wsgi_application() returns it, and do what the wrapper does"
            " in a middleware; or use greenlet mode.",
            id="layby.W007",
        )
