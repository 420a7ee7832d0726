"""Cache backends: one per slot and alias, not one per request.

Django keeps cache backends in a `Local`, which is empty in the fresh context of every
request: each request would get a backend of its own, with Redis a new connection pool.
So a slot keeps its backends, and a job uses those of the slot that steps it.
"""

from __future__ import annotations

import functools
import threading
from typing import Any

from django.conf import settings
from django.core.cache import caches

from layby._job import Job, before_resume, slot_closers, tls

_REQUEST = "layby.django.request"


class _Slot(threading.local):
    def __init__(self) -> None:
        self.backends: dict[str, Any] = {}


_slot = _Slot()


@functools.cache
def install() -> None:
    create = caches.create_connection

    def create_connection(alias: str) -> Any:
        if tls.job is None:
            return create(alias)
        if alias not in _slot.backends:
            _slot.backends[alias] = create(alias)
        return _slot.backends[alias]

    # Called for an alias that the request's context does not know yet.
    caches.create_connection = create_connection  # type: ignore[method-assign]
    before_resume.append(_rebind)
    slot_closers.append(_close)


def remember(job: Job, request: Any) -> None:
    """Note the request, whose session may hold a cache backend."""
    job.scratch[_REQUEST] = request


def _rebind(job: Job) -> None:
    bound = caches._connections  # type: ignore[attr-defined]
    for alias in caches.settings:
        if hasattr(bound, alias):
            caches[alias] = caches.create_connection(alias)
    session = getattr(job.scratch.get(_REQUEST), "session", None)
    if hasattr(session, "_cache"):
        session._cache = caches[settings.SESSION_CACHE_ALIAS]  # type: ignore[union-attr]


def _close() -> None:
    backends, _slot.backends = _slot.backends, {}
    for backend in backends.values():
        backend.close()
