"""asgiref's two adapters in a slot, for Django, Flask and whoever else uses them.

- Where no event loop runs, a `SyncToAsync` is called right where it is awaited. The
  original can only raise there, so nothing that worked changes. Patching the one class
  covers Django's handlers, sessions, cache, every `a…` method of the ORM, and
  third-party code. Inside `async with layby.io` it is run in a slot: on a thread of
  asgiref's own it would open one connection more than the slots may have.
- Who calls `async_to_sync` by hand gets an event loop on a thread of its own, as under
  any WSGI server: channels, async SDKs and the like need one. The job is lent to that
  thread, so that what layby fetches there still goes through the gateway, in place.
"""

from __future__ import annotations

import copy
import functools
from asyncio import _get_running_loop
from contextvars import Context
from typing import Any

from asgiref.sync import AsyncToSync, SyncToAsync

from layby import _ride
from layby._job import tls


@functools.cache
def install_direct_calls() -> None:
    """Make `SyncToAsync` a plain call where no event loop runs, and one in a slot in `layby.io`."""
    original = SyncToAsync.__call__

    async def call(self: SyncToAsync[..., Any], *args: Any, **kwargs: Any) -> Any:
        ride = None
        if _get_running_loop() is not None:
            ride = _ride.here()
            if ride is None:
                return await original(self, *args, **kwargs)
        context: Context | None = getattr(self, "context", None)
        if ride is not None:
            run = self.func if context is None else functools.partial(context.run, self.func)
            return await ride.call(functools.partial(run, *args, **kwargs))
        if context is None:
            return self.func(*args, **kwargs)
        return context.run(self.func, *args, **kwargs)

    SyncToAsync.__call__ = call  # type: ignore[method-assign]


@functools.cache
def install_lent_jobs() -> None:
    """Lend the job of a slot to the thread where `async_to_sync` runs its event loop."""
    original = AsyncToSync.__call__

    def call(self: AsyncToSync[..., Any], *args: Any, **kwargs: Any) -> Any:
        job, waiter = tls.job, tls.waiter
        if job is None or _get_running_loop() is not None:
            return original(self, *args, **kwargs)

        # Until the loop has ended this thread runs what that calls by `sync_to_async`, and both
        # may wait in place, in turn. To park is for neither: the loop would go on meanwhile, and
        # asgiref takes it for that of any other request here.
        async def lent() -> Any:
            # Called below `sync_to_async` it runs on the loop of an outer one, which has it lent.
            before = tls.job, tls.waiter
            tls.job, tls.waiter = job, waiter
            try:
                return await self.awaitable(*args, **kwargs)
            finally:
                tls.job, tls.waiter = before

        lender = copy.copy(self)
        lender.awaitable = lent
        job.lent += 1
        try:
            return original(lender)
        finally:
            job.lent -= 1

    AsyncToSync.__call__ = call  # type: ignore[method-assign]
