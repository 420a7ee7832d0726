"""When a job must not park, and what becomes of a slot's connections."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from stepper import Slots, environ


@pytest.fixture(params=["default", "pg"])
def using(request: pytest.FixtureRequest) -> str:
    if request.param == "pg":
        request.getfixturevalue("postgres")
    return str(request.param)


@pytest.mark.parametrize(
    ("path", "text", "reason"),
    [
        ("/atomic/", "paid", "transaction"),
        ("/begin/", "committed", "transaction"),
        ("/autocommit-off/", "on", "transaction"),
        ("/iterator/", "whole", "cursor"),
        ("/cursor/", "1", "cursor"),
    ],
)
def test_what_is_bound_to_the_connection_waits_in_place(
    slots: Slots, using: str, path: str, text: str, reason: str
) -> None:
    answer = slots.get(f"{path}?using={using}")
    assert (answer.code, answer.text, answer.waits) == (200, text, [reason])
    assert len(answer.slots) == 1


@pytest.mark.parametrize(
    ("path", "text"), [("/iterated/", "True"), ("/closed-cursor/", "CursorWrapper")]
)
def test_what_has_been_closed_does_not_keep_a_job_from_parking(
    slots: Slots, using: str, path: str, text: str
) -> None:
    answer = slots.get(f"{path}?using={using}")
    assert (answer.text, answer.waits, len(answer.slots)) == (text, [], 2)


def test_an_execute_wrapper_stays_with_its_request(slots: Slots) -> None:
    answer = slots.get("/execute-wrapper/")
    assert (answer.text, answer.waits, len(answer.slots)) == ("2", ["unsupported"], 2)


def test_one_named_persistent_connection_per_slot(slots: Slots, postgres: str) -> None:
    seen: dict[int, set[tuple[int, str]]] = {}
    for _ in range(3):
        for answer in slots.run(*(environ("/backends/") for _ in range(8))):
            for slot, (pid, name) in zip(
                answer.slots, json.loads(answer.text)["seen"], strict=False
            ):
                seen.setdefault(slot, set()).add((pid, name))
    assert sorted(seen) == [0, 1, 2, 3]
    for slot, connections in seen.items():
        assert len(connections) == 1
        assert {name for _, name in connections} == {f"shop layby slot {slot}"}


def test_a_connection_opened_while_starting_is_closed(build: Any) -> None:
    from django.db import connection

    connection.ensure_connection()
    build()
    assert connection.connection is None


def test_a_retired_slot_closes_its_connections(app: object, postgres: str) -> None:
    with Slots(app, 2) as slots:
        slots.run(*(environ("/backends/") for _ in range(2)))
        assert _named_connections() == ["shop layby slot 0", "shop layby slot 1"]
    assert _named_connections() == []


def test_a_connection_that_the_server_dropped_costs_no_request(slots: Slots, postgres: str) -> None:
    first = slots.run(*(environ("/backends/") for _ in range(4)))
    pids = {pid for answer in first for pid, _ in json.loads(answer.text)["seen"]}
    for pid in pids:
        os.kill(pid, signal.SIGTERM)
    _wait_until_gone(pids)
    second = slots.run(*(environ("/backends/") for _ in range(4)))
    assert [answer.code for answer in second] == [200] * 4
    assert not pids & {pid for answer in second for pid, _ in json.loads(answer.text)["seen"]}


def test_an_idle_slot_renews_its_connection_for_a_job_that_resumes(
    app: object, postgres: str
) -> None:
    with Slots(app, 2) as slots:
        # Slot 1 gets a connection, which dies while the slot is idle.
        [_, answer] = slots.run(environ("/hello/"), environ("/backends/"))
        assert answer.slots[0] == 1
        pids = {pid for pid, _ in json.loads(answer.text)["seen"]}
        for pid in pids:
            os.kill(pid, signal.SIGTERM)
        _wait_until_gone(pids)
        resumed = slots.get("/backends/")
        assert (resumed.slots[:2], resumed.code) == ([0, 1], 200)


def test_connections_that_are_not_kept_are_given_back_at_a_park(app: object, postgres: str) -> None:
    """As Django does at the end of a request; a psycopg pool could run dry otherwise."""
    from django.db import connections

    options = connections.settings["pg"]
    options["CONN_MAX_AGE"] = 0
    try:
        with Slots(app, 2) as slots:
            answer = slots.get("/backends/")
            assert answer.slots == [0, 1, 0]
            assert len({pid for pid, _ in json.loads(answer.text)["seen"]}) == 2
            assert _named_connections() == []
    finally:
        options["CONN_MAX_AGE"] = None


def _named_connections() -> list[str]:
    # A backend ends a moment after its client has closed the connection.
    from django.db import connections

    with connections["pg"].cursor() as cursor:
        for _ in range(100):
            cursor.execute(
                "SELECT application_name, pg_sleep(0.02) FROM pg_stat_activity"
                " WHERE application_name LIKE '%%layby slot%%' ORDER BY 1"
            )
            names = [name for name, _ in cursor.fetchall()]
            if len(names) in (0, 2):
                break
    connections["pg"].close()
    return names


def _wait_until_gone(pids: set[int]) -> None:
    for pid in pids:
        while Path(f"/proc/{pid}").exists():
            subprocess.run(["true"], check=True)
