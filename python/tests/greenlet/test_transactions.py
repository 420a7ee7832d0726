"""The four ways to hold a transaction, and connections: the request waits in place.

With SQLAlchemy and with psycopg of one's own, in both modes that park. Django's are in
`test_django` (greenlet mode) and in the tests of Django (coroutine mode).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from fakegateway import LOCAL, PINNED, Connection
from psycopg_pool import ConnectionPool
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    mapped_column,
    scoped_session,
    sessionmaker,
)
from stories import Start, app, around_a_sleep, go_on, parks, resume, text

import layby.sqlalchemy
from layby._drive import drive

MODES = pytest.mark.parametrize("mode", ["greenlet", "coroutine"])


class Base(DeclarativeBase): ...


class Row(Base):
    __tablename__ = "rows"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


@pytest.fixture(scope="module")
def dsn(postgres: str) -> str:
    return f"host={os.environ['TEST_PG_HOST']} user=postgres dbname=postgres"


@pytest.fixture(scope="module")
def engine(dsn: str) -> Iterator[sa.Engine]:
    engine = sa.create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(dsn))
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add(Row(id=1, name="one"))
        session.commit()
    yield engine
    engine.dispose()


Begin = Callable[[Any], Any]


def waits(start: Start, mode: str, begin: Callable[[], Any], end: Callable[[Any], None]) -> str:
    """Why a request waits that has begun this; after its end others park. "" if it parks."""

    def finish(state: Any) -> bytes:
        end(state)
        return b"done"

    [slot] = start(around_a_sleep(mode, lambda environ: begin(), finish), mode=mode)
    slot.request(1)
    frame = slot.frame()
    if frame.type == "PARK":
        resume(slot, 1)
        assert text(slot) == "done"
        return ""
    assert frame.type == "HOLD"
    go_on(slot, 1)
    assert text(slot) == "done"
    # Nothing of it is left to keep the next request from parking.
    [other] = start(around_a_sleep(mode, lambda environ: None, lambda state: b"next"), mode=mode)
    other.request(2)
    parks(other, 2, mode)
    reason = frame.plan["hold"]["reason"]
    assert isinstance(reason, str)
    return reason


def select(session: Session) -> Session:
    assert session.get(Row, 1) is not None
    return session


@MODES
def test_a_session_that_has_only_read_waits_in_place(
    start: Start, mode: str, engine: sa.Engine
) -> None:
    assert waits(start, mode, lambda: select(Session(engine)), Session.close) == "transaction"


@MODES
@pytest.mark.parametrize("level", ["AUTOCOMMIT", "SERIALIZABLE"])
def test_at_any_isolation_level(start: Start, mode: str, engine: sa.Engine, level: Any) -> None:
    bound = engine.execution_options(isolation_level=level)
    assert waits(start, mode, lambda: select(Session(bound)), Session.close) == "transaction"


@MODES
@pytest.mark.parametrize("how", ["commit", "rollback", "close", "release", "context"])
def test_one_that_has_given_its_connection_back_parks(
    start: Start, mode: str, engine: sa.Engine, how: str
) -> None:
    def begin() -> Session:
        session = Session(engine)
        if how == "context":
            with session:
                return select(session)
        select(session)
        if how == "release":
            layby.sqlalchemy.release(session)
        else:
            getattr(session, how)()
        return session

    assert waits(start, mode, begin, Session.close) == ""


@MODES
def test_a_core_connection_a_stream_and_a_savepoint_wait_in_place(
    start: Start, mode: str, engine: sa.Engine
) -> None:
    def stream() -> Any:
        connection = engine.connect().execution_options(stream_results=True)
        rows = connection.execute(sa.text("SELECT generate_series(1, 1000)"))
        rows.fetchone()
        connection.info["rows"] = rows
        return connection

    def savepoint() -> Any:
        connection = engine.connect()
        connection.begin()
        connection.begin_nested()
        return connection

    def close(connection: sa.Connection) -> None:
        rows = connection.info.pop("rows", None)
        if rows is not None:
            rows.close()
        connection.close()

    for begin in (engine.connect, stream, savepoint):
        assert waits(start, mode, begin, close) == "transaction"


@MODES
def test_a_detached_connection_counts_as_held(start: Start, mode: str, engine: sa.Engine) -> None:
    def detach() -> sa.Connection:
        connection = engine.connect()
        connection.detach()
        return connection

    assert waits(start, mode, detach, sa.Connection.close) == "transaction"


def test_release_keeps_what_was_loaded_and_commits(start: Start, engine: sa.Engine) -> None:
    def view(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        session = Session(engine)
        row = session.get(Row, 1)
        assert row is not None
        row.name = "changed"
        layby.sqlalchemy.release(session)
        layby.sleep(1).result()
        assert session.expire_on_commit
        queries: list[str] = []
        sa.event.listen(engine, "before_cursor_execute", lambda *a: queries.append(a[2]))
        name = row.name
        start_response("200 OK", [])
        session.close()
        return [f"{name} {queries}".encode()]

    [slot] = start(view)
    slot.request(1)
    parks(slot, 1, "greenlet")
    with engine.connect() as connection:
        assert connection.execute(sa.text("SELECT name FROM rows")).scalar() == "changed"
    resume(slot, 1)
    assert text(slot) == "changed []"


@MODES
def test_a_scoped_session_is_the_requests_own(start: Start, mode: str, engine: sa.Engine) -> None:
    sessions = scoped_session(sessionmaker(engine))

    def before(environ: dict[str, Any]) -> tuple[str, Session]:
        assert not sessions.registry.has()
        sessions.info["path"] = environ["PATH_INFO"]
        select(sessions())
        layby.sqlalchemy.release(sessions)
        return environ["PATH_INFO"], sessions()

    def after(state: tuple[str, Session]) -> bytes:
        path, session = state
        assert sessions() is session
        assert sessions.info == {"path": path}
        sessions.remove()
        return path.encode()

    [slot] = start(around_a_sleep(mode, before, after), mode=mode)
    for request in range(1, 6):
        slot.request(request, f"/{request}")
        parks(slot, request, mode)
    for request in range(1, 6):
        resume(slot, request)
        assert text(slot) == f"/{request}"
    # Outside requests it is per thread, as ever.
    assert sessions() is sessions()
    sessions.remove()


@MODES
def test_a_raw_connection_in_a_transaction_waits_in_place(
    start: Start, mode: str, dsn: str
) -> None:
    def used(connection: psycopg.Connection[Any]) -> psycopg.Connection[Any]:
        connection.execute("SELECT 1")
        return connection

    def begun_by_hand() -> psycopg.Connection[Any]:
        connection = psycopg.connect(dsn, autocommit=True)
        connection.execute("BEGIN")
        return connection

    def failed() -> psycopg.Connection[Any]:
        connection = psycopg.connect(dsn)
        with pytest.raises(psycopg.errors.SyntaxError):
            connection.execute("SELECT FROM WHERE")
        return connection

    close = psycopg.Connection.close
    for begin in (lambda: used(psycopg.connect(dsn)), begun_by_hand, failed):
        assert waits(start, mode, begin, close) == "transaction"


@MODES
def test_a_raw_connection_without_one_parks(start: Start, mode: str, dsn: str) -> None:
    def autocommit() -> psycopg.Connection[Any]:
        connection = psycopg.connect(dsn, autocommit=True)
        connection.execute("SELECT 1")
        return connection

    def committed() -> psycopg.Connection[Any]:
        connection = psycopg.connect(dsn)
        connection.execute("SELECT 1")
        connection.commit()
        return connection

    for begin in (lambda: psycopg.connect(dsn), autocommit, committed):
        assert waits(start, mode, begin, psycopg.Connection.close) == ""


def test_what_an_operation_beside_a_request_leaves_open_is_its_error(
    start: Start, control: Connection, engine: sa.Engine, dsn: str
) -> None:
    sessions = scoped_session(sessionmaker(engine))
    kept: list[Any] = []

    def session() -> None:
        kept.append(select(Session(engine)))

    def scoped() -> None:
        kept.append(select(sessions()))

    def raw() -> None:
        kept.append(psycopg.connect(dsn))
        kept[-1].execute("SELECT 1")

    def closed() -> str:
        with Session(engine) as session:
            select(session)
        return "fine"

    async def view() -> str:
        try:
            async with layby.parallel() as ops:
                fine = ops.run(closed)
                for leaves_open in (session, scoped, raw):
                    ops.run(leaves_open)
        except* layby.Error as group:
            errors = [str(error).partition("in a slot: ")[2] for error in group.exceptions]
        return f"{fine.result()} {len(errors)} {sum('SQLAlchemy' in each for each in errors)}"

    [slot] = start(app(lambda environ: drive(view()).encode()))
    slot.request(1)
    assert slot.expect("PARK").flags == PINNED | LOCAL
    for _ in range(4):
        call = control.expect("CALL")
        slot.send("RUN", request=1, epoch=0, aux=call.aux)
        slot.expect("READY")
    control.expect("WANT")
    slot.send("RESUME", request=1, epoch=1)
    assert text(slot) == "fine 3 2"
    assert kept[2].closed
    kept[0].close()


@MODES
def test_a_connection_out_of_a_pool_waits_in_place(start: Start, mode: str, dsn: str) -> None:
    with ConnectionPool(dsn, min_size=1, max_size=2, open=True) as pool:
        assert waits(start, mode, pool.getconn, pool.putconn) == "transaction"

        def given_back() -> None:
            with pool.connection() as connection:
                connection.execute("SELECT 1")

        assert waits(start, mode, given_back, lambda state: None) == ""
