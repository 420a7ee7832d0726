"""SQLAlchemy on layby: a request that holds a connection does not park.

Workers hook into SQLAlchemy by themselves when the application has imported it.

- A session takes a connection out of its pool at its first statement, a plain SELECT
  included, and gives it back at commit, rollback or close. With one out the request is in
  a transaction, and other requests would need further connections: so it waits in place,
  until it has committed. `release(session)` commits and gives the connection back.

      user = session.get(User, 7)
      layby.sqlalchemy.release(session)
      quote = layby.get("https://ship.example/quote").result()      # parks
      user.balance -= quote.json()["price"]                          # a new transaction

- A `scoped_session` without a scope of its own is per thread, and so would be shared by
  requests that are parked on one. In a slot it is per request instead.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

from sqlalchemy import event
from sqlalchemy.orm import Session, scoped_session
from sqlalchemy.pool import Pool
from sqlalchemy.util import ThreadLocalRegistry

from layby._exceptions import Error
from layby._job import Job, Obstacle, after_call, park_checks, tls

__all__ = ["install", "release"]

_HELD = "layby.sqlalchemy.held"
_SCOPED = "layby.sqlalchemy.scoped"


def release(session: Session | scoped_session[Any]) -> None:
    """Commit, and give the session's connection back, so that the request can park.

    What was loaded stays loaded: it is not expired, as by `session.commit()`. It may have
    changed in the database when the session is used next, in a new transaction.
    """
    real: Session = session() if isinstance(session, scoped_session) else session
    expire, real.expire_on_commit = real.expire_on_commit, False
    try:
        real.commit()
    finally:
        real.expire_on_commit = expire


@functools.cache
def install() -> None:
    """Hook into SQLAlchemy; for the life of the process. Workers call this themselves."""
    # On the class: for every pool there is or will be.
    event.listen(Pool, "checkout", _taken)
    event.listen(Pool, "checkin", _given_back)
    event.listen(Pool, "detach", _detached)
    event.listen(Pool, "connect", _made)
    park_checks.append(_obstacle)
    after_call.append(_end_what_is_open)
    _scope_by_request()


def _made(dbapi_connection: Any, record: Any) -> None:
    psycopg = sys.modules.get("layby._psycopg")
    if psycopg is not None:
        psycopg.not_ours(dbapi_connection)


def _taken(dbapi_connection: Any, record: Any, proxy: Any) -> None:
    job = tls.job
    if job is None:
        return
    held = job.scratch.setdefault(_HELD, set())
    held.add(id(record))
    # By whom, for it may be given back when another job, or none, runs on this thread.
    record.info[_HELD] = held


def _given_back(dbapi_connection: Any, record: Any) -> None:
    held = record.info.pop(_HELD, None)
    if held is not None:
        held.discard(id(record))


def _detached(dbapi_connection: Any, record: Any) -> None:
    # It is the request's own now, and stays counted. The record may come to another one.
    held = record.info.pop(_HELD, None)
    if held is not None:
        held.discard(id(record))
        held.add("detached")


def _obstacle(job: Job) -> Obstacle | None:
    if job.scratch.get(_HELD):
        return Obstacle(
            "transaction",
            "a SQLAlchemy connection is checked out: commit first, or call"
            " layby.sqlalchemy.release(session)",
        )
    return None


def _end_what_is_open(job: Job) -> None:
    """What a slot ran beside a request must give back what it took."""
    left = _obstacle(job)
    for scoped in job.scratch.get(_SCOPED, {}).values():
        if isinstance(scoped, Session):
            scoped.close()
    if left is not None:
        raise Error(f"left open at the end of what it ran in a slot: {left.detail}")


def _scope_by_request() -> None:
    kind: Any = ThreadLocalRegistry
    call, has, put, clear = kind.__call__, kind.has, kind.set, kind.clear

    def scoped_call(self: Any) -> Any:
        job = tls.job
        if job is None:
            return call(self)
        scoped = job.scratch.setdefault(_SCOPED, {})
        if self not in scoped:
            scoped[self] = self.createfunc()
        return scoped[self]

    def scoped_has(self: Any) -> bool:
        job = tls.job
        return bool(has(self)) if job is None else self in job.scratch.get(_SCOPED, ())

    def scoped_set(self: Any, value: Any) -> None:
        job = tls.job
        if job is None:
            put(self, value)
        else:
            job.scratch.setdefault(_SCOPED, {})[self] = value

    def scoped_clear(self: Any) -> None:
        job = tls.job
        if job is None:
            clear(self)
        else:
            job.scratch.get(_SCOPED, {}).pop(self, None)

    kind.__call__, kind.has, kind.set, kind.clear = (
        scoped_call,
        scoped_has,
        scoped_set,
        scoped_clear,
    )
