"""asgiref without an event loop, and its `Local`s over a change of thread.

Django calls everything synchronous from its async code through asgiref's
`SyncToAsync`, and keeps language, time zone, URLconf and script prefix in asgiref
`Local`s. Three things are decided here:

- Where no event loop runs, a `SyncToAsync` is called right where it is awaited. The
  original can only raise there, so nothing that worked changes. Patching the one class
  covers Django's handlers, sessions, cache, every `a…` method of the ORM, and
  third-party code. Inside `async with layby.io` it is run in a slot: on a thread of
  asgiref's own it would open one connection more than the slots may have.
- Who calls `async_to_sync` by hand gets an event loop on a thread of its own, as under
  any WSGI server: channels, async SDKs and the like need one. The job is lent to that
  thread, so that what layby fetches there still goes through the gateway, in place.
- What a `Local` holds for a request goes with it to the thread that resumes it. How
  depends on the asgiref: up to 3.7 a `Local` is a dict on the thread object; from 3.8
  on a context variable, which travels with the job's context; from 3.12 on its value
  is tagged with the thread's id and vanishes on any other thread unless re-tagged. Such a
  thread is also the event loop's, and that of a slot that runs something beside the request.

All of that is private to asgiref, so `self_test` tries it before the first request.
"""

from __future__ import annotations

import copy
import functools
from asyncio import _get_running_loop
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context, copy_context
from typing import Any

import asgiref
import asgiref.local
from asgiref.local import Local
from asgiref.sync import AsyncToSync, SyncToAsync

from layby import _ride
from layby._exceptions import AsgirefUnsupported
from layby._job import Job, before_resume, on_branch, rehomers, tls

_LOCALS = "layby.django.locals"

_probe = Local()


class _JobLocals:
    """What `Local`s hold for one job, where asgiref would use the thread object."""


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

        # This thread does nothing else until the loop has ended, so both never use the
        # slot's connection at a time.
        async def lent() -> Any:
            tls.job, tls.waiter = job, waiter
            try:
                return await self.awaitable(*args, **kwargs)
            finally:
                tls.job = tls.waiter = None

        lender = copy.copy(self)
        lender.awaitable = lent
        return original(lender)

    AsyncToSync.__call__ = call  # type: ignore[method-assign]


@functools.cache
def install_travelling_locals() -> None:
    """Let `Local`s follow a job from thread to thread."""
    if hasattr(asgiref.local, "_rehome"):
        before_resume.append(lambda job: _rehome_storages())
        rehomers.append(_rehome_storages)
    elif hasattr(Local, "_get_context_id"):
        _keep_locals_with_the_job()


def _rehome_storages() -> None:
    storage, rehome = asgiref.local._Storage, asgiref.local._rehome
    for variable, value in copy_context().items():
        if isinstance(value, storage):
            variable.set(rehome(value))


def _keep_locals_with_the_job() -> None:
    kind: Any = Local
    original = kind._get_context_id

    def context_id(self: Any) -> Any:
        job = tls.job or _ride.riding_job()
        # Thread-critical ones (database connections) belong to the slot, not to the job.
        if job is None or self._thread_critical:
            return original(self)
        return job.scratch.setdefault(_LOCALS, _JobLocals())

    kind._get_context_id = context_id
    on_branch.append(_copy_locals)


def _copy_locals(job: Job, branch: Job) -> None:
    """A branch sees what the request has set; what it changes there is its own."""
    branch.scratch[_LOCALS] = copied = _JobLocals()
    for name, values in vars(job.scratch.get(_LOCALS, copied)).items():
        setattr(copied, name, dict(values))


def self_test() -> None:
    """Let `Local`s travel, and try it: one must survive a change of thread, with its own job.

    # Raises

    `AsgirefUnsupported`, when coroutine mode would lose request state, or mix it up.
    """
    install_travelling_locals()
    ours, other = _probe_job(), _probe_job()
    # Both threads live to the end: a new one may get the id of one that has ended.
    with ThreadPoolExecutor(1) as first, ThreadPoolExecutor(1) as second:
        first.submit(_step, ours, lambda: setattr(_probe, "value", "ours")).result()
        seen = second.submit(_step, ours, _read).result()
        leaked = [thread.submit(_step, other, _read).result() for thread in (first, second)]
    if seen != "ours" or leaked != [None, None]:
        version = getattr(asgiref, "__version__", "of unknown version")
        raise AsgirefUnsupported(
            f"asgiref {version} does not carry request state from thread to thread"
            " in a way that layby knows: coroutine mode would lose languages and time zones."
            " Use --mode wsgi, or an asgiref from 3.6 to 3.13."
        )


def _probe_job() -> Job:
    return Job(request=0, epoch=0, environ={}, context=Context(), slot=0)


def _read() -> Any:
    return getattr(_probe, "value", None)


def _step(job: Job, step: Callable[[], Any]) -> Any:
    """Run `step` as a slot does after a park."""
    tls.job = job
    for rehome in rehomers:
        job.context.run(rehome)
    return job.context.run(step)
