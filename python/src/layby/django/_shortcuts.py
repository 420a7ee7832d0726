"""Django's own async code, where it needs more than direct calls, or pays too much.

- `Signal.asend` and `asend_robust` use `asyncio.gather`, which needs an event loop (so
  `alogin()` would fail in a slot). Without one the receivers are called in their order.
- `MiddlewareMixin.__acall__` builds two `SyncToAsync` objects per middleware and request,
  and the handler one per synchronous view: together a third of the CPU time of an empty
  view. Without a loop hooks and views are called directly.

Where a loop runs the originals are untouched.
"""

from __future__ import annotations

import functools
from asyncio import _get_running_loop
from collections.abc import Callable
from typing import Any

import django.core.handlers.base
from django.dispatch import Signal
from django.utils.deprecation import MiddlewareMixin

from layby._job import tls


@functools.cache
def install() -> None:
    _shorten_middleware()
    _shorten_views()
    if hasattr(Signal, "asend"):  # Django 5.0 and later
        _send_without_a_loop()


def _shorten_middleware() -> None:
    original = MiddlewareMixin.__acall__

    async def acall(self: Any, request: Any) -> Any:
        if _get_running_loop() is not None:
            return await original(self, request)
        response = None
        if hasattr(self, "process_request"):
            response = self.process_request(request)
        response = response or await self.get_response(request)
        if hasattr(self, "process_response"):
            response = self.process_response(request, response)
        return response

    MiddlewareMixin.__acall__ = acall  # type: ignore[method-assign]


def _shorten_views() -> None:
    original = django.core.handlers.base.sync_to_async  # type: ignore[attr-defined]

    def sync_to_async(func: Callable[..., Any], **options: Any) -> Any:
        # What is built without a job is kept, and may yet be called from a loop.
        if tls.job is None or _get_running_loop() is not None:
            return original(func, **options)

        async def call(*args: Any, **kwargs: Any) -> Any:
            return func(*args, **kwargs)

        return call

    django.core.handlers.base.sync_to_async = sync_to_async  # type: ignore[attr-defined]


def _send_without_a_loop() -> None:
    asend, asend_robust = Signal.asend, Signal.asend_robust

    async def send(self: Any, sender: Any, **named: Any) -> Any:
        if _get_running_loop() is not None:
            return await asend(self, sender, **named)
        receivers, async_receivers = self._live_receivers(sender)
        responses = [(each, each(signal=self, sender=sender, **named)) for each in receivers]
        for each in async_receivers:
            responses.append((each, await each(signal=self, sender=sender, **named)))
        return responses

    async def send_robust(self: Any, sender: Any, **named: Any) -> Any:
        if _get_running_loop() is not None:
            return await asend_robust(self, sender, **named)
        receivers, async_receivers = self._live_receivers(sender)
        responses = []
        for each in [*receivers, *async_receivers]:
            try:
                response = each(signal=self, sender=sender, **named)
                if each in async_receivers:
                    response = await response
            except Exception as error:  # noqa: BLE001 (what "robust" promises)
                self._log_robust_failure(each, error)
                response = error
            responses.append((each, response))
        return responses

    Signal.asend = send  # type: ignore[method-assign]
    Signal.asend_robust = send_robust  # type: ignore[method-assign]
