"""psycopg connections that no framework of ours knows: an open transaction is seen.

Asked at a park are the connections that were made on this thread, and the ones that the
request has taken out of a `psycopg_pool`; but not those of SQLAlchemy and Django, which are
asked by others who know more. What cannot be seen: a connection made by another
thread and handed over, and one of another driver.
"""

from __future__ import annotations

import functools
import threading
from typing import Any
from weakref import WeakSet

import psycopg

from layby._exceptions import Error
from layby._job import Job, Obstacle, after_call, park_checks, tls

_IDLE = psycopg.pq.TransactionStatus.IDLE
_TAKEN = "layby.psycopg.taken"


class _Thread(threading.local):
    def __init__(self) -> None:
        self.made: WeakSet[psycopg.Connection[Any]] = WeakSet()


_thread = _Thread()


@functools.cache
def install() -> None:
    """Hook into psycopg; for the life of the process."""
    _count_made()
    _count_taken()
    park_checks.append(_obstacle)
    after_call.append(_end_what_is_open)


def not_ours(connection: object) -> None:
    """Do not ask this one: somebody else knows who uses it."""
    if isinstance(connection, psycopg.Connection):
        _thread.made.discard(connection)
        if tls.job is not None and _TAKEN in tls.job.scratch:
            tls.job.scratch[_TAKEN].discard(connection)


def _count_made() -> None:
    original = psycopg.Connection.__init__

    @functools.wraps(original)
    def init(self: psycopg.Connection[Any], *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        if tls.job is not None:
            _thread.made.add(self)

    psycopg.Connection.__init__ = init  # type: ignore[method-assign]


def _count_taken() -> None:
    try:
        from psycopg_pool import ConnectionPool
    except ImportError:
        return
    pool: Any = ConnectionPool
    getconn, putconn = pool.getconn, pool.putconn

    @functools.wraps(getconn)
    def get(self: Any, timeout: float | None = None) -> Any:
        connection = getconn(self, timeout)
        if tls.job is not None:
            tls.job.scratch.setdefault(_TAKEN, WeakSet()).add(connection)
        return connection

    @functools.wraps(putconn)
    def put(self: Any, conn: Any) -> None:
        if tls.job is not None:
            tls.job.scratch.get(_TAKEN, WeakSet()).discard(conn)
        putconn(self, conn)

    pool.getconn, pool.putconn = get, put


def _end_what_is_open(job: Job) -> None:
    """What a slot ran beside a request must end its transactions: here they are rolled back."""
    left = _obstacle(job)
    if left is None:
        return
    for connection in list(_thread.made):
        if not connection.closed and connection.info.transaction_status != _IDLE:
            connection.close()
    raise Error(f"left open at the end of what it ran in a slot: {left.detail}")


def _obstacle(job: Job) -> Obstacle | None:
    if job.scratch.get(_TAKEN):
        return Obstacle("transaction", "a connection is taken out of a psycopg_pool")
    for connection in list(_thread.made):
        if not connection.closed and connection.info.transaction_status != _IDLE:
            return Obstacle("transaction", "a transaction is open on a psycopg connection")
    return None
