"""`manage.py check`: silent when requests park, else every reason why not, with the cure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.conf import settings
from django.core import checks
from django.core.management import call_command
from django.db import connections
from django.test import override_settings

import layby.django
from layby.django import _asgiref


def messages() -> list[checks.CheckMessage]:
    return checks.run_checks(tags=["layby"])


def told(**changed: Any) -> list[tuple[str | None, str]]:
    with override_settings(**changed):
        found = messages()
    assert all(message.hint for message in found)
    assert all(message.level == checks.WARNING for message in found)
    return [(message.id, str(message.msg)) for message in found]


def with_middleware(*names: str) -> list[tuple[str | None, str]]:
    more = [f"project.checked.{name}" for name in names]
    return told(MIDDLEWARE=[*settings.MIDDLEWARE, *more])


def test_it_is_silent_when_all_is_well(capsys: pytest.CaptureFixture[str]) -> None:
    assert messages() == []
    with override_settings(SILENCED_SYSTEM_CHECKS=[]):
        call_command("check")
    assert capsys.readouterr().out == "System check identified no issues (0 silenced).\n"


def test_manage_py_shows_the_cure(capsys: pytest.CaptureFixture[str]) -> None:
    path = "project.checked.SyncOnly"
    with override_settings(SILENCED_SYSTEM_CHECKS=[], MIDDLEWARE=[*settings.MIDDLEWARE, path]):
        call_command("check", "--tag", "layby")
    output = capsys.readouterr().err
    assert "(layby.W001) Middleware project.checked.SyncOnly runs synchronously" in output
    assert "HINT: Upgrade or replace it" in output
    assert "1 issue" in output


@pytest.mark.parametrize(
    ("name", "number", "reason"),
    [
        ("SyncOnly", "layby.W001", "it is not async_capable"),
        ("OwnCall", "layby.W002", "its own __call__ is synchronous, but it inherits async_capable"),
        ("ClaimsAsync", "layby.W002", "it says async_capable, but is not a coroutine function"),
    ],
)
def test_synchronous_middleware_is_named(name: str, number: str, reason: str) -> None:
    ((seen, text),) = with_middleware(name, "both")
    assert seen == number
    assert text.startswith(f"Middleware project.checked.{name} runs synchronously ({reason})")


def test_every_synchronous_middleware_is_named() -> None:
    found = with_middleware("ClaimsAsync", "SyncOnly", "OwnCall")
    assert [number for number, _ in found] == ["layby.W002", "layby.W001", "layby.W002"]


@pytest.mark.parametrize("name", ["both", "OwnCalls", "unused", "fails", "no_such_name"])
def test_other_middleware_is_not(name: str) -> None:
    assert with_middleware(name) == []


@pytest.fixture
def database() -> Iterator[dict[str, Any]]:
    """The settings of a database, as they were afterwards."""
    options = connections.settings["default"]
    before = options.copy()
    yield options
    options.update(before)


@pytest.mark.parametrize(
    ("key", "value", "number", "words"),
    [
        ("ATOMIC_REQUESTS", True, "layby.W003", "ATOMIC_REQUESTS is on for database 'default'"),
        ("AUTOCOMMIT", False, "layby.W004", "AUTOCOMMIT is off for database 'default'"),
    ],
)
def test_databases_that_are_always_in_a_transaction_are_named(
    database: dict[str, Any], key: str, value: bool, number: str, words: str
) -> None:
    database[key] = value
    ((seen, text),) = told()
    assert seen == number
    assert text.startswith(words)


def test_turning_parking_off_is_told_and_nothing_else_matters_then() -> None:
    changed = {
        "LAYBY_INLINE_ASYNC_VIEWS": False,
        "MIDDLEWARE": [*settings.MIDDLEWARE, "project.checked.SyncOnly"],
    }
    assert told(**changed) == [
        ("layby.W005", "LAYBY_INLINE_ASYNC_VIEWS is False, so no request parks.")
    ]


def test_an_asgiref_that_does_not_do_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def unfit() -> None:
        raise layby.django.AsgirefUnsupported("asgiref 9 does not carry request state")

    monkeypatch.setattr(_asgiref, "self_test", unfit)
    assert told() == [("layby.W006", "No request parks: asgiref 9 does not carry request state")]


def test_a_wrapped_application_is_told() -> None:
    ((number, text),) = told(WSGI_APPLICATION="project.checked.wrapped")
    assert number == "layby.W007"
    assert "of type project.checked.Wrapper" in text


def test_an_application_that_cannot_be_imported_is_not_ours_to_tell() -> None:
    assert told(WSGI_APPLICATION="project.nothing.application") == []
