"""A Django project as a coroutine application: environ in, response out.

What Django's `WSGIHandler` does around the middleware, done for a request that may
change its thread: signals are sent on the slot's thread, and the response goes out
through an adapter. An application that does not use layby gains nothing from the
asynchronous chain; it keeps the synchronous one, and so runs exactly as under WSGI.
"""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from types import FunctionType, ModuleType
from typing import Any

from django.apps import apps
from django.conf import settings
from django.core.cache import close_caches
from django.core.handlers.base import reset_urlconf
from django.core.handlers.wsgi import WSGIHandler, get_script_name
from django.core.signals import got_request_exception, request_finished, request_started
from django.db import close_old_connections, connections
from django.http import FileResponse
from django.http.response import HttpResponseBase
from django.urls import get_resolver, set_script_prefix

from layby._asgiref import install_lent_jobs
from layby._job import App, tls
from layby.django import _asgiref, _bodies, _caches, _databases, _files, _inplace
from layby.django._chain import Chain

logger = logging.getLogger("layby.django")

# What Django itself does when a request is finished. All of it is cheap.
_STANDARD = {close_caches, close_old_connections, reset_urlconf}

# On a request that ended without a response.
_ENDED = "_layby_ended"

# Django reads files in blocks of 4 KiB; every block is a frame to the gateway.
_BLOCK = 64 * 1024


def application(handler: WSGIHandler) -> App:
    """The coroutine application that stands for Django's `handler`.

    Call it once per process, after the application is imported. Logs which requests
    will not park, and why.

    # Raises

    `AsgirefUnsupported`, when coroutine mode is not safe with the installed asgiref.
    """
    _asgiref.self_test()
    if not prepare():
        return _Application(handler, _synchronous(handler), stepped=False)
    chain = Chain()
    _log_what_does_not_park(chain)
    return _Application(handler, chain.get_response_async, stepped=True)


def prepare(*, pinned: bool = False) -> bool:
    """What a worker does for a Django project in every mode, once, after importing it.

    Connections and caches are kept per slot, and `async def` views are stepped in place
    if the project uses layby; returns whether it does. `pinned`: requests park, and go on
    on their own thread, so that they share its connections (greenlet mode).
    """
    _databases.install()
    _caches.install()
    _files.install()
    got_request_exception.connect(_bodies.forget_form, dispatch_uid="layby.django.bodies")
    _finish_what_is_ended()
    install_lent_jobs()
    if pinned:
        _databases.share()
        # Where asgiref keeps them by thread, requests on one would see each other's.
        _asgiref.install_travelling_locals()
        stepped = _inplace.wanted() and uses_layby()
    else:
        stepped = _views_are_stepped()
    if stepped:
        _inplace.install()
    # What was opened while importing would be one more than the slots may have.
    connections.close_all()
    return stepped


@functools.cache
def _finish_what_is_ended() -> None:
    """Have a request that is ended by `Cancelled` end as others do: it has no response to close."""
    original = WSGIHandler.get_response

    def get_response(self: WSGIHandler, request: Any) -> Any:
        try:
            return original(self, request)
        except BaseException:
            if tls.job is not None:
                _end(request, type(self))
            raise

    WSGIHandler.get_response = get_response  # type: ignore[assignment, method-assign]


def _end(request: Any, sender: type[WSGIHandler]) -> None:
    """What began with the request must end with it, once, also where no response is closed."""
    if not hasattr(request, _ENDED):
        setattr(request, _ENDED, True)
        request.close()
        request_finished.send(sender=sender)


def _views_are_stepped() -> bool:
    if not _inplace.wanted():
        logger.info("LAYBY_INLINE_ASYNC_VIEWS is False: requests run as under WSGI, none parks")
        return False
    if not uses_layby():
        # Without a URLconf there are no views of Django's, and nothing to be said of them.
        if apps.ready and hasattr(settings, "ROOT_URLCONF"):
            logger.info(
                "no module of this project uses layby: requests run as under WSGI, none parks"
                ' (if one does, add "layby.django" to INSTALLED_APPS)'
            )
        return False
    return True


def uses_layby() -> bool:
    """Whether a module of the project refers to layby, or INSTALLED_APPS does."""
    if not apps.ready:
        return False  # Nothing but Django's settings is in use: templates, perhaps.
    if apps.is_installed("layby.django"):
        return True
    if hasattr(settings, "ROOT_URLCONF"):
        try:
            _ = get_resolver().url_patterns  # imports the views
        except Exception:
            # Django imports it again for the first request and reports this to the client.
            logger.exception("the URLconf cannot be imported")
    return any(_refers_to_layby(module) for module in list(sys.modules.values()))


def _refers_to_layby(module: ModuleType) -> bool:
    spec = getattr(module, "__spec__", None)
    if _is_ours(getattr(spec, "name", None)):
        return False  # `python -m layby` is called __main__, but not by its spec
    return any(_is_ours(_home(value)) for value in list(getattr(module, "__dict__", {}).values()))


def _home(value: Any) -> Any:
    """Name of the module that `value` comes from, without waking anything lazy."""
    if isinstance(value, ModuleType):
        return value.__name__
    return (value if isinstance(value, type | FunctionType) else type(value)).__module__


def _is_ours(name: Any) -> bool:
    return isinstance(name, str) and (name == "layby" or name.startswith("layby."))


def _synchronous(handler: WSGIHandler) -> Callable[[Any], Awaitable[HttpResponseBase]]:
    async def respond(request: Any) -> HttpResponseBase:
        return handler.get_response(request)

    return respond


def _log_what_does_not_park(chain: Chain) -> None:
    for path, reason in chain.synchronous.items():
        logger.warning(
            "no request parks: middleware %s runs synchronously (%s),"
            " so what is below it waits in place",
            path,
            reason,
        )
    for alias, options in connections.settings.items():
        if options["ATOMIC_REQUESTS"]:
            logger.warning(
                "ATOMIC_REQUESTS on database %r: Django refuses `async def` views there,"
                " unless they are marked @transaction.non_atomic_requests;"
                " other requests do not park",
                alias,
            )


class _Application:
    def __init__(
        self,
        handler: WSGIHandler,
        respond: Callable[[Any], Awaitable[HttpResponseBase]],
        *,
        stepped: bool,
    ) -> None:
        self._handler = handler
        self._sender = type(handler)
        self._respond = respond
        self._stepped = stepped
        self._finish = _Finish(self._sender)

    def __repr__(self) -> str:
        return f"<layby.django application for {self._handler!r}>"

    async def __call__(self, environ: dict[str, Any], /) -> _Response:
        set_script_prefix(get_script_name(environ))
        request_started.send(sender=self._sender, environ=environ)
        request = _bodies.request_class(self._handler.request_class, environ)(environ)
        if tls.job is not None:
            _caches.remember(tls.job, request)
        try:
            response: Any = await self._respond(request)
        except BaseException:
            _end(request, self._sender)  # Cancelled, above all.
            raise
        response._handler_class = self._sender
        return _Response(
            response,
            quick_close=self._finish.is_quick(response, request),
            parks=self._stepped and _inplace.stepped(response),
        )


class _Response:
    """Django's response in the form that slots send."""

    __slots__ = ("_parks", "_parts", "_response", "headers", "quick_close", "status")

    def __init__(self, response: Any, *, quick_close: bool, parks: bool) -> None:
        self.status = f"{response.status_code} {response.reason_phrase}"
        self.headers: list[tuple[str, str]] = [
            *response.items(),
            *(("Set-Cookie", cookie.OutputString()) for cookie in response.cookies.values()),
        ]
        self.quick_close = quick_close
        self._response = response
        self._parks = parks
        self._parts: Iterator[bytes] | None = None

    def __iter__(self) -> Iterator[bytes]:
        response = self._response
        if isinstance(response, FileResponse) and "block_size" not in vars(response):
            response.block_size = _BLOCK
        self._parts = iter(response)
        return self._parts

    def stream(self) -> AsyncGenerator[bytes, None] | None:
        """See `AppResponse`."""
        return _inplace.pieces(self._response) if self._parks else None

    @property
    def filelike(self) -> Any:
        """What `_files` looks into for a file on disk."""
        return self._response

    def close(self) -> None:
        # First the stream, so that its `finally` blocks run before the request is over.
        close_parts = getattr(self._parts, "close", None)
        try:
            if close_parts is not None:
                close_parts()
        finally:
            self._response.close()


class _Finish:
    """Whether closing a response does no more than Django itself does."""

    def __init__(self, sender: type[WSGIHandler]) -> None:
        self._sender = sender
        self._receivers: list[Any] | None = None
        self._standard = False

    def is_quick(self, response: Any, request: Any) -> bool:
        if request_finished.receivers != self._receivers:
            self._look()
        return (
            self._standard
            and not response.streaming
            and response._resource_closers == [request.close]
            and type(response).close is HttpResponseBase.close
        )

    def _look(self) -> None:
        self._receivers = list(request_finished.receivers)
        live: Any = request_finished._live_receivers(self._sender)
        # From Django 5.0 on a pair: synchronous and asynchronous ones.
        receivers = [*live[0], *live[1]] if isinstance(live, tuple) else live
        self._standard = _STANDARD.issuperset(receivers)
