"""Coroutines below synchronous Django code: stepped in place, not on an event loop.

Django's synchronous handler (test client, `runserver`, any WSGI server) runs an `async
def` view on an event loop in another thread, where the ORM refuses to work. With
`"layby.django"` installed the view is stepped by the calling thread instead, without a
loop: blocking code is welcome, and what layby fetches is waited for in place.

Left to the event loop, as in plain Django:

- everything, with `LAYBY_INLINE_ASYNC_VIEWS = False` in the settings;
- a view decorated with `on_event_loop`;
- whatever is called while a loop waits for this thread (ASGI, `AsyncClient`).

What of a view needs asyncio stands under `async with layby.io`, or the view has to be named;
the error it gets without says so.
"""

from __future__ import annotations

import functools
import sys
import types
import weakref
from asyncio import _get_running_loop
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import django.core.handlers.base
from asgiref.sync import AsyncToSync, SyncToAsync
from django.conf import settings
from django.http import StreamingHttpResponse

from layby import _asgiref
from layby._drive import drive, misses_loop
from layby._exceptions import Error
from layby._job import tls
from layby._stream import in_place
from layby.django import _shortcuts
from layby.django._asgiref import install_travelling_locals, install_unshared_locals

T = TypeVar("T")
View = TypeVar("View", bound=Callable[..., Any])

_ON_LOOP = "_layby_on_event_loop"

NEEDS_LOOP = (
    "This view is stepped without an event loop, so that it may block. layby's own things wait side"
    " by side in layby.gather. If it needs asyncio, put that under `async with layby.io:`, decorate"
    " the view with @layby.django.on_event_loop, or set LAYBY_INLINE_ASYNC_VIEWS = False"
)


def wanted() -> bool:
    """Whether the settings allow stepping in place (they do by default)."""
    return getattr(settings, "LAYBY_INLINE_ASYNC_VIEWS", True) is not False


@functools.cache
def install() -> None:
    """Step coroutines without a loop, and views and streams in place."""
    _asgiref.install_direct_calls()
    install_travelling_locals()
    install_unshared_locals()
    _shortcuts.install()
    django.core.handlers.base.async_to_sync = InPlace  # type: ignore[attr-defined]
    original = StreamingHttpResponse.__iter__

    def iterate(self: StreamingHttpResponse) -> Iterator[bytes]:
        if not stepped(self) or _loop_waits():
            return original(self)
        return in_place(pieces(self))

    StreamingHttpResponse.__iter__ = iterate  # type: ignore[method-assign]


def on_event_loop(view: View) -> View:
    """Run this `async def` view on an event loop, as plain Django does.

    For views that use asyncio throughout. Blocking code and layby's fetches are refused in
    them, and in a slot the request waits in place: where only a part of the view needs
    asyncio, `async with layby.io` around that part does better.

        @on_event_loop
        async def rates(request): ...

        path("rates", on_event_loop(RatesView.as_view()))
    """
    on_loop: AsyncToSync[..., Any] = AsyncToSync(view)

    @functools.wraps(view)
    async def call(*args: Any, **kwargs: Any) -> Any:
        if _get_running_loop() is not None:
            return await view(*args, **kwargs)
        response = on_loop(*args, **kwargs)
        if getattr(response, "is_async", False):
            setattr(response, _ON_LOOP, True)
        return response

    return call  # type: ignore[return-value]


if TYPE_CHECKING:
    _AsyncToSync = AsyncToSync[..., Any]
else:
    _AsyncToSync = AsyncToSync  # not generic at run time before asgiref 3.7


class InPlace(_AsyncToSync):
    """`async_to_sync` for Django's handlers: same object, other way of running it."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if _loop_waits():
            return super().__call__(*args, **kwargs)
        return self._run(self.awaitable(*args, **kwargs))

    def _run(self, awaitable: Awaitable[Any]) -> Any:
        try:
            return drive(_result(awaitable))
        except (Error, RuntimeError) as error:
            explain(error)
            raise


class BelowSyncMiddleware(InPlace):
    """What a middleware calls that can only run synchronously: nothing below it parks."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # Also while a loop waits for this thread: that of a middleware further up.
        return self._run(self.awaitable(*args, **kwargs))

    def _run(self, awaitable: Awaitable[Any]) -> Any:
        job = tls.job
        if job is None:
            return super()._run(awaitable)
        job.inline.append("middleware")
        try:
            return super()._run(awaitable)
        finally:
            job.inline.pop()


def explain(error: BaseException) -> None:
    """Name the cure on an error that comes of there being no event loop."""
    if misses_loop(error) and NEEDS_LOOP not in getattr(error, "__notes__", ()):
        error.add_note(NEEDS_LOOP)


async def _result(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


def _loop_waits() -> bool:
    """Whether an event loop runs here, or waits elsewhere for what this thread does."""
    if _get_running_loop() is not None:
        return True
    loop = getattr(SyncToAsync.threadlocal, "main_event_loop", None)
    return loop is not None and loop.is_running()


async def pieces(response: StreamingHttpResponse) -> AsyncGenerator[bytes, None]:
    """The parts of an asynchronous stream; closing this closes the generators that make them."""
    begun = _Begun()
    parts = aiter(response.streaming_content)  # type: ignore[arg-type]
    try:
        while True:
            try:
                part = await begun.during(anext(parts))
            except StopAsyncIteration:
                return
            yield part
    finally:
        await _close([*begun.generators(), parts, response._iterator])  # type: ignore[attr-defined]


class _Begun:
    """The asynchronous generators that a stream has begun, and has not dropped.

    The view's own is inside those of Django and of middleware (GZip's, for one), which know
    nothing of each other: closing one does not close what it iterates over.
    """

    def __init__(self) -> None:
        self._generators: dict[int, weakref.ref[AsyncGenerator[Any, Any]]] = {}

    def generators(self) -> list[AsyncGenerator[Any, Any]]:
        """Those that are left, innermost first: the last that was begun is in the one before."""
        # A copy: any of them may be dropped at any moment.
        left = (reference() for reference in reversed(list(self._generators.values())))
        return [generator for generator in left if generator is not None]

    @types.coroutine
    def during(self, awaited: Awaitable[T]) -> Generator[Any, Any, T]:
        """Await it, and note what is begun meanwhile.

        The hooks are the thread's, which has other things to do while this waits.
        """
        steps = awaited.__await__()
        step: Callable[[], Any] = functools.partial(next, steps)
        while True:
            before = sys.get_asyncgen_hooks()
            sys.set_asyncgen_hooks(firstiter=functools.partial(self._note, before.firstiter))
            try:
                yielded = step()
            except StopIteration as stop:
                result: T = stop.value
                return result
            finally:
                sys.set_asyncgen_hooks(firstiter=before.firstiter)
            try:
                step = functools.partial(steps.send, (yield yielded))
            except BaseException as error:  # noqa: BLE001 - it is raised in the stream
                step = functools.partial(steps.throw, error)

    def _note(self, before: Callable[[Any], None] | None, generator: Any) -> None:
        if before is not None:
            before(generator)  # That of an event loop.
        key = id(generator)
        self._generators[key] = weakref.ref(generator, lambda _: self._generators.pop(key, None))


async def _close(streams: list[Any]) -> None:
    """Close each of them, whatever becomes of the others; raises the first failure."""
    failure: BaseException | None = None
    for stream in streams:
        if not hasattr(stream, "aclose"):
            continue
        try:
            await stream.aclose()
        except GeneratorExit:
            raise  # Dropped: nobody steps this any more.
        except BaseException as error:  # noqa: BLE001 - raised below
            failure = failure or error
    if failure is not None:
        raise failure


def stepped(response: Any) -> bool:
    """Whether a response is an asynchronous stream that needs no event loop."""
    return getattr(response, "is_async", False) and not hasattr(response, _ON_LOOP)
