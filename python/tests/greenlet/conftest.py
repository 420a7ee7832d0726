"""Slots in this process whose requests park, with the test as their gateway; and a Django.

In a process of its own, apart from the other tests: where parked requests share a thread,
Django's connections are closed by other rules, for the whole process.
"""

from __future__ import annotations

import importlib.util
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parent.parent
sys.path.insert(0, str(TESTS / "core"))
sys.path.insert(0, str(Path(__file__).parent))


def _load(name: str, path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# The Django project of the other tests, and its databases.
_django = _load("django_conftest", TESTS / "django" / "conftest.py")
pytest_configure = _django.pytest_configure
database = _django.database
postgres = _django.postgres

from fakegateway import Connection, Link  # noqa: E402
from stories import Start  # noqa: E402

from layby import _flask, _hooks  # noqa: E402
from layby._channel import Channel  # noqa: E402
from layby._coroutine import CoroutineRunner  # noqa: E402
from layby._greenlet import GreenletRunner  # noqa: E402
from layby._locals import ThreadLocals  # noqa: E402
from layby._slot import Slot, Welcome  # noqa: E402
from layby._worker import Voice  # noqa: E402
from layby._wsgi import WsgiRunner  # noqa: E402


@pytest.fixture
def ends() -> Iterator[tuple[Connection, Voice]]:
    """Both ends of the control connection: the test's, and that of the worker's requests."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    connection = Connection(ours, preamble=False)
    channel = Channel(theirs)
    yield connection, Voice(channel)
    connection.close()
    channel.close()


@pytest.fixture
def control(ends: tuple[Connection, Voice]) -> Connection:
    """Where WANT and CALL arrive."""
    return ends[0]


@pytest.fixture
def start(ends: tuple[Connection, Voice]) -> Iterator[Start]:
    """Starts slots of one application: `one, two = start(app, slots=2)`."""
    opened: list[Connection] = []
    threads: list[threading.Thread] = []

    def start(
        app: Any,
        *,
        mode: str = "greenlet",
        slots: int = 1,
        thread_locals: tuple[str, ...] = (),
        **options: Any,
    ) -> list[Connection]:
        locals = ThreadLocals.from_environment(thread_locals)
        runner: Any
        if mode == "wsgi":
            runner = WsgiRunner(app)
        elif mode == "greenlet":
            runner = GreenletRunner(app, locals, **options)
        else:
            runner = CoroutineRunner(app, locals)
        connections = []
        for number in range(slots):
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            slot = Slot(
                number,
                channel=Channel(theirs),
                welcome=Welcome(process=1, key="k", max_plan=1 << 20, thread_locals=()),
                runner=runner,
                parking=runner if runner.parks else None,
                process=ends[1],
            )
            thread = threading.Thread(target=slot.run, name=f"slot-{number}", daemon=True)
            thread.start()
            threads.append(thread)
            connection = Connection(ours, preamble=False)
            connection.expect("SLOT")
            connections.append(connection)
        opened.extend(connections)
        return connections

    yield start
    for connection in opened:
        connection.close()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive(), f"{thread.name} did not end with its connection"


@pytest.fixture
def hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test's own hooks around parks, gone after it."""
    monkeypatch.setattr(_hooks, "_on_park", [])
    monkeypatch.setattr(_hooks, "_on_resume", [])


@pytest.fixture
def link(tmp_path: Path) -> Iterator[Link]:
    # Short, because the path of a Unix socket must be.
    link = Link(str(tmp_path / "l"))
    yield link
    link.close()


@pytest.fixture(scope="session")
def django_app(database: None) -> Any:
    """The Django project as a worker runs it in greenlet mode."""
    from django.core.wsgi import get_wsgi_application

    from layby import django

    application = get_wsgi_application()
    assert django.prepare(pinned=True)
    return application


@pytest.fixture(scope="session", autouse=True)
def _integrations() -> None:
    from layby import _psycopg, sqlalchemy

    _flask.install()
    sqlalchemy.install()
    _psycopg.install()
