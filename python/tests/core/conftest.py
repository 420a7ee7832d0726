"""Slots as threads of the test's own process, with the test as their gateway."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fakegateway import Connection, Link

from layby._channel import Channel
from layby._coroutine import CoroutineRunner
from layby._locals import ThreadLocals
from layby._slot import Slot, Welcome
from layby._worker import Voice
from layby._wsgi import WsgiRunner

WELCOME = Welcome(process=1, key="k", max_plan=1 << 20, thread_locals=())

Start = Callable[..., list[Connection]]


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
    """Starts slots of one application: `first, second = start(app, mode="coroutine", slots=2)`."""
    opened: list[Connection] = []
    threads: list[threading.Thread] = []

    def start(
        app: Any, *, mode: str = "wsgi", slots: int = 1, thread_locals: tuple[str, ...] = ()
    ) -> list[Connection]:
        runner: Any
        if mode == "wsgi":
            runner = WsgiRunner(app)
        else:
            runner = CoroutineRunner(app, ThreadLocals.from_environment(thread_locals))
        connections = []
        for number in range(slots):
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            slot = Slot(
                number,
                channel=Channel(theirs),
                welcome=WELCOME,
                runner=runner,
                parking=runner if mode == "coroutine" else None,
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
def link(tmp_path: Path) -> Iterator[Link]:
    # Short, because the path of a Unix socket must be.
    link = Link(str(tmp_path / "l"))
    yield link
    link.close()
