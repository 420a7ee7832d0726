"""Django's middleware and view as one coroutine per request.

A middleware that cannot run in the coroutine must not turn a working application into
one that answers 500. Django believes what a middleware says of itself; here it is
looked at, and one that only says that it is async-capable is run synchronously, as
under WSGI. What is below a synchronous middleware is stepped in place: it waits there
instead of parking.

One that needs an event loop in its asynchronous form (`asyncio.timeout`, say) is found out by
the first request that comes to it: from then on it runs synchronously, or on a loop of its
own if it has no other form. That first request goes on from this middleware in the new way, if
nothing below it has run yet: what the middleware itself did before it failed it does again, and
nobody else does anything twice. If it failed on the way back, the request is answered with 500.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any

from asgiref.sync import AsyncToSync, SyncToAsync, iscoroutinefunction
from django.conf import settings
from django.core.handlers import base
from django.core.handlers.base import BaseHandler
from django.utils.deprecation import MiddlewareMixin
from django.utils.module_loading import import_string

from layby._drive import misses_loop
from layby.django._inplace import BelowSyncMiddleware, explain

logger = logging.getLogger("layby.django")

# The handler whose middleware this thread is loading.
_loading: ContextVar[_Handler | None] = ContextVar("layby_loading", default=None)


class _NotAsync(Exception):
    """The middleware of this path says that it is async-capable, and is not."""

    def __init__(self, path: str) -> None:
        self.path = path


class Chain:
    """Django's asynchronous chain, for slots that run no event loop."""

    def __init__(self) -> None:
        _watch_loading()
        # Why the middleware of these paths runs synchronously.
        self._reasons: dict[str, str] = {}
        # Of those the ones that have only the asynchronous form.
        self._on_loop: set[str] = set()
        self._changing = threading.Lock()
        for path in settings.MIDDLEWARE:
            middleware = import_string(path)
            if overrides_only_the_sync_call(middleware):
                middleware.async_capable = False
                self._reasons[path] = "its own __call__ is synchronous"
        self._handler = self._load()

    @property
    def synchronous(self) -> dict[str, str]:
        """Dotted paths of the middleware below which nothing parks, with the reason."""
        return {
            path: self._reasons.get(path, "it is not async_capable")
            for path in self._handler.synchronous
        }

    def get_response_async(self, request: Any) -> Awaitable[Any]:
        """The response to a request, by the chain as it is now."""
        return self._handler.get_response_async(request)

    def without_loop(self, path: str, error: BaseException) -> _Handler:
        """The chain once the middleware of `path` does not run in the coroutine any more."""
        with self._changing:
            if path in self._reasons:
                return self._handler  # Another request has come to it at the same time.
            self._reasons[path] = "it needs an event loop"
            middleware = import_string(path)
            if getattr(middleware, "sync_capable", True):
                middleware.async_capable = False
            else:
                self._on_loop.add(path)
            self._handler = self._load()
        logger.warning(
            "middleware %s needs an event loop (%s): from now on it runs synchronously, so what is"
            " below it waits in place. Put what it needs of asyncio under `async with layby.io:`,"
            " or let it have async_capable = False",
            path,
            error,
        )
        return self._handler

    def _load(self) -> _Handler:
        while True:
            try:
                return _Handler(self, frozenset(self._on_loop))
            except _NotAsync as found:
                import_string(found.path).async_capable = False
                self._reasons[found.path] = "it says async_capable, but is not a coroutine function"


class _Handler(BaseHandler):
    """One loading of the middleware. Requests that are in it stay in it."""

    def __init__(self, chain: Chain, on_loop: frozenset[str]) -> None:
        super().__init__()
        self._chain = chain
        self._on_loop = on_loop
        self.synchronous: list[str] = []
        # By path: the middleware and all that is below it.
        self.entries: dict[str, Callable[[Any], Any]] = {}
        # What `load_middleware` is building now; each one is inspected by the next step.
        self._building = ""
        # Whether that may do something asynchronous of its own.
        self._watches = False
        token = _loading.set(self)
        try:
            self.load_middleware(is_async=True)
        finally:
            _loading.reset(token)

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
            self._watches = not _is_djangos(import_string(self._building))
        if method_is_async is None:
            method_is_async = iscoroutinefunction(method)
            if method_is_async and self._watches:
                method = _watched_hook(self._building, method)
        on_loop = below and self._building in self._on_loop
        if on_loop or (method_is_async and not is_async):
            if below:
                self.synchronous.append(self._building)
            if method_is_async:
                method = BelowSyncMiddleware(method)
            return SyncToAsync(method) if on_loop else method
        adapted: Callable[..., Any] = super().adapt_method_mode(
            is_async, method, method_is_async, debug, name
        )
        return _noting_calls(adapted) if below and is_async and self._watches else adapted

    def watched(self, middleware: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """The middleware that has just been made, with an eye on what it needs."""
        path = self._building
        if not path or not iscoroutinefunction(middleware):
            return middleware
        if path in self._on_loop:
            return _on_loop(middleware)
        return self._watched(path, middleware) if self._watches else middleware

    def _watched(
        self, path: str, middleware: Callable[[Any], Any]
    ) -> Callable[[Any], Awaitable[Any]]:
        async def call(request: Any) -> Any:
            before, way = _way.get(), _Way()
            _way.set(way)
            try:
                return await middleware(request)
            except Exception as error:
                if error is way.failure or not misses_loop(error):
                    raise
                successor = self._chain.without_loop(path, error)
                if way.below:
                    raise
            finally:
                _way.set(before)
            entry = successor.entries[path]
            response = entry(request)
            return await response if iscoroutinefunction(entry) else response

        return call

    def process_exception_by_middleware(self, exception: Exception, request: Any) -> Any:
        explain(exception)
        return super().process_exception_by_middleware(exception, request)


class _Way:
    """One request's way through one middleware."""

    def __init__(self) -> None:
        # It has come out below.
        self.below = False
        # What has been raised there, and so is not the middleware's own.
        self.failure: BaseException | None = None


_way: ContextVar[_Way | None] = ContextVar("layby_way", default=None)


def _noting_calls(handler: Callable[[Any], Awaitable[Any]]) -> Callable[[Any], Awaitable[Any]]:
    """What a watched middleware is given as `get_response`."""

    async def get_response(request: Any) -> Any:
        # Not when it is called: what is never awaited never runs.
        way = _way.get()
        if way is None:
            return await handler(request)
        way.below = True
        try:
            return await handler(request)
        except BaseException as error:
            way.failure = error
            raise

    return get_response


def _on_loop(middleware: Callable[[Any], Awaitable[Any]]) -> Callable[[Any], Awaitable[Any]]:
    """A middleware that is nothing but asynchronous, run as Django's synchronous handler does."""
    run: AsyncToSync[..., Any] = AsyncToSync(middleware)

    async def call(request: Any) -> Any:
        return run(request)

    return call


def _watched_hook(path: str, hook: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """A `process_view`, say, that is begun again on a loop once it has turned out to need one."""
    on_loop: AsyncToSync[..., Any] | None = None

    @functools.wraps(hook)
    async def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal on_loop
        if on_loop is None:
            try:
                return await hook(*args, **kwargs)
            except Exception as error:
                if not misses_loop(error):
                    raise
                on_loop = AsyncToSync(hook)
                name = getattr(hook, "__name__", repr(hook))
                logger.warning(
                    "%s of middleware %s needs an event loop (%s): from now on it gets one, for"
                    " which its slot waits",
                    name,
                    path,
                    error,
                )
        return on_loop(*args, **kwargs)

    return call


def _is_djangos(middleware: Any) -> bool:
    """Whether all that a middleware does asynchronously is what Django itself does."""
    return str(middleware.__module__).startswith("django.") or (
        isinstance(middleware, type)
        and issubclass(middleware, MiddlewareMixin)
        and middleware.__call__ is MiddlewareMixin.__call__
        and middleware.__acall__ is MiddlewareMixin.__acall__
    )


@functools.cache
def _watch_loading() -> None:
    """Have `load_middleware` show us each middleware: it goes straight into this function."""
    original = base.convert_exception_to_response  # type: ignore[attr-defined]

    def convert_exception_to_response(get_response: Callable[[Any], Any]) -> Any:
        handler = _loading.get()
        if handler is None:
            return original(get_response)
        path = handler._building
        converted = original(handler.watched(get_response))
        if path:
            handler.entries[path] = converted
        return converted

    base.convert_exception_to_response = (  # type: ignore[attr-defined]
        convert_exception_to_response
    )


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
