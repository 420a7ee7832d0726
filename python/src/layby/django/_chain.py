"""Django's middleware and view as one coroutine per request.

A middleware that cannot run in the coroutine must not turn a working application into
one that answers 500. Django believes what a middleware says of itself; here it is
looked at, and one that only says that it is async-capable is run synchronously, as
under WSGI. What is below a synchronous middleware is stepped in place: it waits there
instead of parking.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from asgiref.sync import iscoroutinefunction
from django.conf import settings
from django.core.handlers.base import BaseHandler
from django.utils.deprecation import MiddlewareMixin
from django.utils.module_loading import import_string

from layby.django._inplace import BelowSyncMiddleware, explain


class _NotAsync(Exception):
    """The middleware of this path says that it is async-capable, and is not."""

    def __init__(self, path: str) -> None:
        self.path = path


class Chain(BaseHandler):
    """Django's handler with its asynchronous chain, for slots that run no event loop."""

    def __init__(self) -> None:
        super().__init__()
        # Dotted paths of the middleware below which nothing parks, with the reason.
        self.synchronous: dict[str, str] = {}
        # What `load_middleware` is building now; each one is inspected by the next step.
        self._building = ""
        self._load()

    def _load(self) -> None:
        reasons: dict[str, str] = {}
        for path in settings.MIDDLEWARE:
            middleware = import_string(path)
            if overrides_only_the_sync_call(middleware):
                middleware.async_capable = False
                reasons[path] = "its own __call__ is synchronous"
        while True:
            self.synchronous = {}
            try:
                self.load_middleware(is_async=True)
                break
            except _NotAsync as found:
                import_string(found.path).async_capable = False
                reasons[found.path] = "it says async_capable, but is not a coroutine function"
        for path in self.synchronous:
            self.synchronous[path] = reasons.get(path, "it is not async_capable")

    def adapt_method_mode(
        self,
        is_async: bool,
        method: Callable[..., Any],
        method_is_async: bool | None = None,
        debug: bool = False,
        name: str | None = None,
    ) -> Callable[..., Any]:
        """Adapt as Django does, but never onto an event loop; told of every handler below."""
        if method_is_async and not iscoroutinefunction(method):
            raise _NotAsync(self._building)
        below = name is not None and name.startswith("middleware ")
        if below and name is not None:
            self._building = name.removeprefix("middleware ")
        if method_is_async is None:
            method_is_async = iscoroutinefunction(method)
        if method_is_async and not is_async:
            if below:
                self.synchronous[self._building] = ""
            return BelowSyncMiddleware(method)
        adapted: Callable[..., Any] = super().adapt_method_mode(
            is_async, method, method_is_async, debug, name
        )
        return adapted

    def process_exception_by_middleware(self, exception: Exception, request: Any) -> Any:
        explain(exception)
        return super().process_exception_by_middleware(exception, request)


def overrides_only_the_sync_call(middleware: Any) -> bool:
    """Whether `middleware` inherits the asynchronous half of a pair it has redefined."""
    return (
        isinstance(middleware, type)
        and issubclass(middleware, MiddlewareMixin)
        and middleware.__call__ is not MiddlewareMixin.__call__
        and not iscoroutinefunction(middleware.__call__)
        and middleware.__acall__ is MiddlewareMixin.__acall__
        and middleware.sync_capable
        and middleware.async_capable
    )
