"""Middleware of every kind: none may break an application, and what cannot park is told."""

from __future__ import annotations

from typing import Any

import pytest
from django.conf import settings
from stepper import environ


def _with(*paths: str) -> dict[str, list[str]]:
    return {"MIDDLEWARE": [*settings.MIDDLEWARE, *(f"project.middleware.{each}" for each in paths)]}


@pytest.mark.parametrize(
    ("name", "header", "reason"),
    [
        ("SyncOnly", "X-Sync-Only", "it is not async_capable"),
        ("OwnCall", "X-Own-Call", "its own __call__ is synchronous"),
        (
            "ClaimsAsync",
            "X-Claims-Async",
            "it says async_capable, but is not a coroutine function",
        ),
    ],
)
def test_below_a_synchronous_middleware_requests_wait_in_place(
    build: Any, caplog: pytest.LogCaptureFixture, name: str, header: str, reason: str
) -> None:
    slots = build(**_with(name))
    assert f"middleware project.middleware.{name} runs synchronously ({reason})" in caplog.text
    for path, text in [("/blocking/", '{"state": "paid"}'), ("/sync/", "slept 0.0")]:
        answer = slots.get(path)
        assert (answer.code, answer.text, answer.header(header)) == (200, text, "seen")
        assert len(answer.slots) == 1
    assert slots.get("/blocking/").waits == ["middleware"]


def test_a_failing_view_below_a_synchronous_middleware_is_a_500(build: Any) -> None:
    slots = build(**_with("SyncOnly"))
    assert slots.get("/fails/").code == 500
    # The reason to wait has gone with the request that had it.
    answer = slots.get("/missing/")
    assert (answer.code, answer.waits) == (404, ["middleware"])


@pytest.mark.parametrize(
    ("name", "header", "value"),
    [("both", "X-Both", "async"), ("AsyncOnly", "X-Async-Only", "seen")],
)
def test_below_asynchronous_middleware_requests_park(
    build: Any, caplog: pytest.LogCaptureFixture, name: str, header: str, value: str
) -> None:
    slots = build(**_with(name))
    assert "runs synchronously" not in caplog.text
    answer = slots.get("/blocking/")
    assert (answer.code, answer.waits, len(answer.slots)) == (200, [], 2)
    assert answer.header(header) == value


def test_async_only_middleware_above_a_synchronous_one(build: Any) -> None:
    slots = build(**_with("AsyncOnly", "ClaimsAsync", "both"))
    answer = slots.get("/blocking/")
    assert (answer.code, answer.waits) == (200, ["middleware"])
    assert answer.header("X-Async-Only") == answer.header("X-Claims-Async") == "seen"


def test_view_and_exception_hooks(build: Any) -> None:
    slots = build(**_with("Hooks"))
    answer = slots.get("/class/")
    assert (answer.text, answer.waits) == ("get True", [])
    assert slots.get("/key-error/").text == "handled 'for the middleware'"
    assert slots.get("/fails/").code == 500


def test_a_middleware_that_watches_queries_keeps_the_request_on_its_connection(build: Any) -> None:
    slots = build(**_with("wraps_queries"))
    answer = slots.get("/blocking/")
    assert (answer.code, answer.waits) == (200, ["unsupported"])


def test_atomic_requests_are_announced(build: Any, caplog: pytest.LogCaptureFixture) -> None:
    from django.db import connections

    options = connections.settings["default"]
    options["ATOMIC_REQUESTS"] = True
    try:
        slots = build()
        assert "ATOMIC_REQUESTS on database 'default'" in caplog.text
        assert slots.get("/sync/").text == "slept 0.0"
        assert slots.get("/blocking/").code == 500
    finally:
        options["ATOMIC_REQUESTS"] = False


def test_stepping_in_place_can_be_turned_off(build: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "layby.django")
    slots = build(LAYBY_INLINE_ASYNC_VIEWS=False)
    assert "LAYBY_INLINE_ASYNC_VIEWS is False" in caplog.text
    assert slots.get("/sync/").code == 200


def test_a_middleware_that_needs_a_loop_runs_synchronously_from_then_on(
    build: Any, caplog: pytest.LogCaptureFixture
) -> None:
    slots = build(**_with("counts", "times_out"))
    # The one that meets it goes on from there: nothing but that middleware begins again.
    first = slots.get("/blocking/")
    assert (first.code, first.text, first.waits) == (200, '{"state": "paid"}', ["middleware"])
    assert (first.header("X-Begun"), first.header("X-Count")) == ("async sync", "1")
    for answer in slots.run(environ("/blocking/"), environ("/blocking/")):
        assert (answer.code, answer.text, answer.waits) == (200, first.text, ["middleware"])
        assert (answer.header("X-Begun"), answer.header("X-Count")) == ("sync", "1")
    said = [record for record in caplog.records if "needs an event loop" in record.getMessage()]
    assert len(said) == 1
    assert "middleware project.middleware.times_out" in said[0].getMessage()
    assert "async_capable = False" in said[0].getMessage()


def test_one_that_needs_it_on_the_way_back_costs_the_first_request(build: Any) -> None:
    slots = build(**_with("sleeps_late"))
    # Its view has run, and must not run again.
    assert slots.get("/blocking/").code == 500
    answer = slots.get("/blocking/")
    assert (answer.code, answer.waits, answer.header("X-Begun")) == (200, ["middleware"], "sync")


@pytest.mark.parametrize("below", [(), ("SyncOnly",), ("AsyncOnly",)])
def test_one_that_is_nothing_but_asynchronous_gets_a_loop(build: Any, below: Any) -> None:
    slots = build(**_with("both", "NeedsLoop", *below, "counts"))
    for _ in range(2):
        answer = slots.get("/blocking/")
        assert (answer.code, answer.text, answer.waits) == (
            200,
            '{"state": "paid"}',
            ["middleware"],
        )
        assert not str(answer.header("X-Needs-Loop")).startswith("slot-")
        assert (answer.header("X-Both"), answer.header("X-Count")) == ("async", "1")
    assert slots.get("/sync/").text == "slept 0.0"
    assert slots.get("/fails/").code == 500


def test_hooks_that_need_a_loop_get_one(build: Any, caplog: pytest.LogCaptureFixture) -> None:
    slots = build(**_with("LoopHooks"))
    for _ in range(2):
        answer = slots.get("/class/")
        assert (answer.text, answer.waits) == ("get True", [])
        assert slots.get("/key-error/").text == "handled 'for the middleware'"
    said = [each.getMessage() for each in caplog.records if "gets one" in each.getMessage()]
    assert [each.split(" needs")[0] for each in said] == [
        "process_view of middleware project.middleware.LoopHooks",
        "process_exception of middleware project.middleware.LoopHooks",
    ]
    assert slots.get("/blocking/").waits == []


def test_a_view_that_needs_a_loop_is_not_taken_for_its_middleware(
    build: Any, caplog: pytest.LogCaptureFixture
) -> None:
    slots = build(**_with("counts"), DEBUG_PROPAGATE_EXCEPTIONS=True)
    assert slots.get("/sleeps/?seconds=1").code == 500
    assert "middleware project.middleware.counts needs" not in caplog.text
    assert slots.get("/blocking/").waits == []
