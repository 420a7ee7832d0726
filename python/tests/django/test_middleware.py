"""Middleware of every kind: none may break an application, and what cannot park is told."""

from __future__ import annotations

from typing import Any

import pytest
from django.conf import settings


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
