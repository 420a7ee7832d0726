"""Database connections: one per slot and alias, and never shared over a park.

- *May this job park?* Not with a transaction, a cursor or an execute wrapper open: it
  would go on on another connection, while another request uses this one. No single
  test sees every open transaction (Django does not see a `BEGIN` by hand, the driver
  does not see `atomic()` before its first query), so all are asked.
- *What does a call leave behind?* What a slot runs beside a request (`layby.parallel`,
  `layby.in_slot`) must end what it begins there: an open transaction is rolled back, and is
  an error.
- *Persistent connections.* A slot keeps its connection: an alias whose `CONN_MAX_AGE` is
  0 and which uses no psycopg pool gets None. A 0 written into the settings cannot be
  told from Django's default (dj-database-url writes it for everyone), so whoever wants
  it kept says `LAYBY_PERSISTENT_CONNECTIONS = False`.
- *Stale connections.* Django looks at connections when a request starts; a resumed job
  comes to a slot that may have been idle for long, so it is looked at then too. What
  layby made persistent is tested for a server that hung up, so that a restart of the
  database costs no request: on PostgreSQL by polling the socket (no round trip), on
  other servers by Django's own health check.
- *Who closes?* Where parked requests share the thread's connections (greenlet mode), one
  request's end must not take away what another one left on them: a temporary table, an
  advisory lock, a cursor that we do not know of. Django's own closing is taken off its
  signals there; a connection that has become too old is closed when nothing is parked on
  the slot, one that is broken at once.
- *Which slot is it?* New PostgreSQL connections are named "layby slot N" for
  `pg_stat_activity`, after the application's own name, if it has one.
"""

from __future__ import annotations

import functools
import logging
import select
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

from django.conf import settings
from django.core.signals import request_finished, request_started
from django.db import DatabaseError, close_old_connections, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created
from django.db.backends.utils import CursorWrapper

from layby._exceptions import Error
from layby._job import (
    Job,
    Obstacle,
    after_call,
    before_resume,
    on_leave,
    park_checks,
    slot_closers,
    slot_openers,
    tls,
)

logger = logging.getLogger("layby.django")

_CURSORS = "layby.django.cursors"
_CLOSED = "_layby_closed"

# libpq's PQTRANS_IDLE, in psycopg 3 and 2 alike.
_IDLE = 0


class _Slot(threading.local):
    """What a slot knows of its connections; on other threads nothing."""

    def __init__(self) -> None:
        self.number: int | None = None
        # The ones that nobody but us tests, by alias.
        self.polled: dict[str, BaseDatabaseWrapper] = {}


_slot = _Slot()

# Aliases that layby made persistent.
_kept: set[str] = set()

# Whether requests that are parked share their thread's connections.
_shared = False


@functools.cache
def install() -> None:
    """Hook into a worker; to be called when Django's settings are there."""
    _count_cursors()
    _hold_execute_wrappers()
    _keep_connections()
    park_checks.append(obstacle)
    after_call.append(_end_what_is_open)
    on_leave.append(_leave)
    before_resume.append(_renew)
    slot_openers.append(_open)
    slot_closers.append(connections.close_all)
    request_started.connect(_renew_at_start, dispatch_uid="layby.django")
    connection_created.connect(_set_up, dispatch_uid="layby.django")


@functools.cache
def share() -> None:
    """Take over closing from Django: parked requests share their thread's connections."""
    global _shared
    _shared = True
    for signal in (request_started, request_finished):
        signal.disconnect(close_old_connections)
        signal.connect(_close_old, dispatch_uid="layby.django.close")


def obstacle(job: Job) -> Obstacle | None:
    """What on this thread's connections keeps the job from parking."""
    for connection in connections.all(initialized_only=True):
        if what := _transaction(connection):
            return Obstacle("transaction", f"{what} on database {connection.alias!r}")
    for cursor in job.scratch.get(_CURSORS, ()):
        if not hasattr(cursor, _CLOSED):
            return Obstacle(
                "cursor",
                f"an open cursor on database {cursor.db.alias!r}"
                " (a half-read .iterator(), or a connection.cursor() that is not closed)",
            )
    return None


def _end_what_is_open(job: Job) -> None:
    """Leave this thread's connections as a call found them; `Error` if that took something."""
    left = obstacle(job)
    if left is None:
        return
    for cursor in list(job.scratch.get(_CURSORS, ())):
        if not hasattr(cursor, _CLOSED):
            cursor.close()
    for connection in connections.all(initialized_only=True):
        if _transaction(connection):
            _roll_back(connection)
    raise Error(f"left open at the end of what it ran in a slot: {left.detail}")


def _roll_back(connection: BaseDatabaseWrapper) -> None:
    """End a transaction whose blocks are not there any more; the connection stays, if it can.

    A server may count one that was closed for a moment longer: one more than the slots have.
    """
    connection.in_atomic_block = False
    connection.savepoint_ids = []
    connection.atomic_blocks = []
    try:
        connection.rollback()
        connection.set_autocommit(connection.settings_dict["AUTOCOMMIT"])
    except DatabaseError as error:
        logger.warning("%r could not be rolled back, so it is closed: %s", connection.alias, error)
        connection.close()


def _transaction(connection: BaseDatabaseWrapper) -> str | None:
    if connection.in_atomic_block:
        return "transaction.atomic()"
    raw: Any = connection.connection
    if raw is None:
        return None
    if not connection.autocommit:
        return "autocommit off"
    if connection.vendor == "postgresql":
        begun = raw.info.transaction_status != _IDLE
    else:
        begun = getattr(raw, "in_transaction", False)  # sqlite3 has it; MySQL cannot say
    return "a transaction begun by hand" if begun else None


def explicit_transaction() -> str | None:
    """A transaction of the application's own on this thread; not those that a test case is in."""
    for connection in connections.all(initialized_only=True):
        blocks = connection.atomic_blocks
        if any(not getattr(block, "_from_testcase", False) for block in blocks):
            return f"transaction.atomic() on database {connection.alias!r}"
    return None


def _count_cursors() -> None:
    prepare = BaseDatabaseWrapper._prepare_cursor  # type: ignore[attr-defined]

    def prepare_cursor(self: BaseDatabaseWrapper, cursor: Any) -> Any:
        wrapper = prepare(self, cursor)
        job = tls.job
        if job is not None:
            opened = job.scratch.get(_CURSORS)
            if opened is None:
                opened = job.scratch[_CURSORS] = WeakSet()
            opened.add(wrapper)
        return wrapper

    def close(self: CursorWrapper) -> None:
        # A closed cursor lives on as long as the view's local variable.
        if hasattr(self, _CLOSED):
            return  # By us, and its connection may be gone since.
        setattr(self, _CLOSED, True)
        self.cursor.close()

    BaseDatabaseWrapper._prepare_cursor = prepare_cursor  # type: ignore[attr-defined]
    CursorWrapper.close = close  # type: ignore[attr-defined]


def _hold_execute_wrappers() -> None:
    original = BaseDatabaseWrapper.execute_wrapper

    @contextmanager
    def execute_wrapper(self: BaseDatabaseWrapper, wrapper: Callable[..., Any]) -> Iterator[None]:
        job = tls.job
        if job is None:
            with original(self, wrapper):
                yield
            return
        job.inline.append("unsupported")
        try:
            with original(self, wrapper):
                yield
        finally:
            job.inline.pop()

    BaseDatabaseWrapper.execute_wrapper = execute_wrapper  # type: ignore[method-assign]


def _keep_connections() -> None:
    if getattr(settings, "LAYBY_PERSISTENT_CONNECTIONS", True) is False:
        return
    for alias, options in connections.settings.items():
        # Django refuses persistent connections with its psycopg pool.
        if options["CONN_MAX_AGE"] == 0 and not options["OPTIONS"].get("pool"):
            options["CONN_MAX_AGE"] = None
            _kept.add(alias)


def _open(number: int) -> None:
    _slot.number = number


def _renew_at_start(**kwargs: Any) -> None:
    _drop_dead()


def _leave(job: Job) -> None:
    if not _shared:
        close_old_connections()


def _renew(job: Job) -> None:
    if _shared:
        _close_unusable()
    else:
        close_old_connections()
    _drop_dead()


def _close_old(**kwargs: Any) -> None:
    """What Django does between requests, on a thread that may have parked ones."""
    if tls.parked:
        _close_unusable()
    else:
        close_old_connections()


def _close_unusable() -> None:
    """Close what nobody could go on with; whatever its age, the rest stays."""
    for connection in connections.all(initialized_only=True):
        due, connection.close_at = connection.close_at, None
        try:
            connection.close_if_unusable_or_obsolete()
        finally:
            if connection.connection is not None:
                connection.close_at = due


def _drop_dead() -> None:
    for connection in _slot.polled.values():
        if (
            connection.connection is not None
            and _has_news(connection.connection)
            and not connection.is_usable()
        ):
            connection.close()


def _has_news(raw: Any) -> bool:
    """Whether the server said something unasked: a notice, or that it hung up."""
    if raw.closed:
        return True
    poll = select.poll()
    poll.register(raw.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def _set_up(connection: Any, **kwargs: Any) -> None:
    psycopg = sys.modules.get("layby._psycopg")
    if psycopg is not None:
        # Also one out of Django's pool is Django's: `obstacle` asks for it.
        psycopg.not_ours(connection.connection)
    if _slot.number is None:
        return
    kept = connection.alias in _kept
    if connection.vendor == "postgresql":
        if kept:
            _slot.polled[connection.alias] = connection
        if not connection.settings_dict["OPTIONS"].get("pool"):
            _name(connection, _slot.number)
    elif kept and connection.vendor != "sqlite":
        connection.health_check_enabled = True


def _name(connection: Any, slot: int) -> None:
    own = connection.connection.info.parameter_status("application_name") or ""
    try:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT set_config('application_name', %s, false)",
                [f"{own} layby slot {slot}".strip()],
            )
    except DatabaseError as error:
        logger.warning("connection of slot %d not named: %s", slot, error)
