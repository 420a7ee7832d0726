"""asgiref's `Local`s over a change of thread.

Django keeps language, time zone, URLconf and script prefix in asgiref `Local`s. What they
hold for a request goes with it to the thread that resumes it. How depends on the
asgiref: up to 3.7 a `Local` is a dict on the thread object; from 3.8 on a context variable,
which travels with the job's context; from 3.12 on its value is tagged with the thread's
id and vanishes on any other thread unless re-tagged. Such a thread is also the event loop's,
and that of a slot that runs something beside the request.

All of that is private to asgiref, so `self_test` tries it before the first request.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context, copy_context
from typing import Any

import asgiref
import asgiref.local
from asgiref.local import Local

from layby import _ride
from layby._exceptions import AsgirefUnsupported
from layby._job import Job, before_resume, on_branch, rehomers, tls

_LOCALS = "layby.django.locals"

_probe = Local()


class _JobLocals:
    """What `Local`s hold for one job, where asgiref would use the thread object."""


@functools.cache
def install_travelling_locals() -> None:
    """Let `Local`s follow a job from thread to thread."""
    if hasattr(asgiref.local, "_rehome"):
        before_resume.append(lambda job: _rehome_storages())
        rehomers.append(_rehome_storages)
    elif hasattr(Local, "_get_context_id"):
        _keep_locals_with_the_job()


@functools.cache
def install_unshared_locals() -> None:
    """Keep what is set in a copy of a context from the original, and the other way round.

    Some releases from asgiref 3.8 on keep the values of a `Local` in one dict, which all copies
    of a context have in common: side by side, operations would change each other's language.
    """
    kind: Any = getattr(asgiref.local, "_CVar", None)
    if kind is None or not _shares_values(kind):
        return
    set_value, delete_value = kind.__setattr__, kind.__delattr__

    def renew(self: Any) -> None:
        self._data.set(dict(self._data.get({})))

    def setattr_(self: Any, key: str, value: Any) -> None:
        if key != "_data":
            renew(self)
        set_value(self, key, value)

    def delattr_(self: Any, key: str) -> None:
        renew(self)
        delete_value(self, key)

    kind.__setattr__, kind.__delattr__ = setattr_, delattr_


def _shares_values(kind: Any) -> bool:
    def probe() -> bool:
        values = kind()
        values.probe = "ours"
        copy_context().run(setattr, values, "probe", "theirs")
        return bool(values.probe != "ours")

    return copy_context().run(probe)


def _rehome_storages() -> None:
    storage, rehome = asgiref.local._Storage, asgiref.local._rehome
    for variable, value in copy_context().items():
        if isinstance(value, storage):
            variable.set(rehome(value))


def _keep_locals_with_the_job() -> None:
    kind: Any = Local
    original = kind._get_context_id

    def context_id(self: Any) -> Any:
        # Thread-critical ones (database connections) belong to the slot, not to the job.
        if self._thread_critical:
            return original(self)
        job = tls.job
        if job is None:
            ride = _ride.here()
            if ride is None:
                return original(self)
            if ride.job is None:
                return ride.home
            job = ride.job
        return job.scratch.setdefault(_LOCALS, _JobLocals())

    kind._get_context_id = context_id
    on_branch.append(_branch_locals)


def _branch_locals(job: Job, branch: Job, part: bool) -> None:
    """A branch sees what the request has set; what it changes is its own, unless it is a part."""
    ours = job.scratch.setdefault(_LOCALS, _JobLocals())
    if part:
        branch.scratch[_LOCALS] = ours
        return
    branch.scratch[_LOCALS] = copied = _JobLocals()
    for name, values in vars(ours).items():
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
