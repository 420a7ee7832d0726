"""The whole Django stack in greenlet mode: views of both kinds park, below any middleware."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from driver import Driver
from stories import Start, park, resume, text

import django

LANGUAGES = {"de": "Ja", "fr": "Oui", "es": "Sí", "en-us": "Yes"}
ZONES = ["Europe/Berlin", "Asia/Tokyo", "America/Lima", "UTC", "Africa/Cairo"]


@pytest.fixture
def slots(start: Start, django_app: Any) -> Driver:
    """Two slots that run the project."""
    return Driver(start(django_app, slots=2))


@pytest.fixture(params=["default", "pg"])
def using(request: pytest.FixtureRequest) -> str:
    if request.param == "pg":
        request.getfixturevalue("postgres")
    return str(request.param)


def environ(*args: Any, **kwargs: Any) -> dict[str, Any]:
    from stepper import environ

    return environ(*args, **kwargs)


def _sign_in(slots: Driver, names: list[str]) -> list[dict[str, str]]:
    logins = slots.run(*(environ(f"/login/?how=sync&name={name}") for name in names))
    tokens = slots.run(*(environ("/csrf/", cookies=answer.cookies) for answer in logins))
    return [
        {**signed_in.cookies, **token.cookies, "token": token.text}
        for signed_in, token in zip(logins, tokens, strict=True)
    ]


def _checkout(cookies: dict[str, str], number: int, using: str) -> dict[str, Any]:
    sent = {name: value for name, value in cookies.items() if name != "token"}
    form = {
        "language": list(LANGUAGES)[number % len(LANGUAGES)],
        "zone": ZONES[number % len(ZONES)],
        "note": f"note {number}",
        "csrfmiddlewaretoken": cookies["token"],
    }
    return environ(f"/checkout/?using={using}", post=form, cookies=sent)


def test_forty_parked_checkouts_keep_their_own_state(slots: Driver, using: str) -> None:
    users = [f"user{number}" for number in range(40)]
    cookies = _sign_in(slots, users)
    for visits in (1, 2):
        posts = [_checkout(each, number, using) for number, each in enumerate(cookies)]
        answers = slots.run(*posts)
        for number, (answer, user) in enumerate(zip(answers, users, strict=True)):
            assert (answer.code, answer.parks, answer.waits) == (200, 1, []), answer
            language = list(LANGUAGES)[number % len(LANGUAGES)]
            seen = json.loads(answer.text)
            assert seen["before"] == {
                "user": user,
                "language": language,
                "yes": LANGUAGES[language],
                "zone": ZONES[number % len(ZONES)],
                "url": "/checkout/",
                "posted": f"note {number}",
            }
            assert seen["after"] == seen["before"]
            assert seen["page"].startswith(f"before {user};after {user};|{user}|")
            assert (seen["visits"], seen["order"], seen["owner"]) == (visits, "paid", user)
            # The same thread, and so the same connection: one per slot.
            assert not seen["moved"]
            assert seen["backends"][0] == seen["backends"][1]
    if using == "pg":
        pids = {json.loads(answer.text)["backends"][0] for answer in answers}
        assert len(pids) == 2


def test_a_post_without_its_csrf_token_is_refused(slots: Driver) -> None:
    [cookies] = _sign_in(slots, ["user0"])
    post = _checkout({**cookies, "token": "x" * 64}, 0, "default")
    assert slots.run(post)[0].code == 403


def test_a_synchronous_view_parks(slots: Driver) -> None:
    answer = slots.get("/sync/")
    assert (answer.text, answer.parks, answer.waits) == ("slept 0.0", 1, [])


@pytest.mark.parametrize(
    ("path", "text"),
    [("/class/", "get False"), ("/template/", "template de Ja"), ("/orm/", None)],
)
def test_asynchronous_views_are_stepped_by_their_slot_and_park(
    slots: Driver, path: str, text: str | None
) -> None:
    answer = slots.get(path)
    assert (answer.code, answer.parks, answer.waits) == (200, 1, [])
    if text is not None:
        assert answer.text.strip() == text


@pytest.mark.parametrize(("path", "code"), [("/fails/", 500), ("/missing/", 404)])
def test_errors_are_django_s_own_answers(slots: Driver, path: str, code: int) -> None:
    answer = slots.get(path)
    assert (answer.code, answer.parks) == (code, 1)
    assert ("X-Frame-Options", "DENY") in answer.headers


def test_locale_middleware_holds_its_language_over_the_park(slots: Driver) -> None:
    asked = [environ("/locale/", headers={"Accept-Language": each}) for each in LANGUAGES]
    answers = slots.run(*asked)
    assert [answer.text for answer in answers] == [
        f"{name} {name} {yes}" for name, yes in LANGUAGES.items()
    ]
    # And leaves nothing on its slot.
    assert {answer.text for answer in slots.run(environ("/locale/"), environ("/locale/"))} == {
        "en-us en-us Yes"
    }


def test_a_stream_parks_between_its_parts(slots: Driver) -> None:
    from django.core.cache import cache

    cache.delete("async-stream-closed")
    answers = slots.run(
        *(environ("/async-stream/", headers={"Accept-Language": each}) for each in LANGUAGES)
    )
    for answer, language in zip(answers, LANGUAGES, strict=True):
        assert answer.text == "".join(f"{n}:True:{language}," for n in range(3))
        # The last wait is that of its `finally`; there the answer may be over.
        assert answer.parks >= 3
    assert cache.get("async-stream-closed")


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
    slots: Driver, using: str, path: str, text: str, reason: str
) -> None:
    answer = slots.get(f"{path}?using={using}")
    assert (answer.code, answer.text, answer.parks) == (200, text, 0)
    assert answer.waits == [reason]


@pytest.mark.parametrize(
    ("path", "text"), [("/iterated/", "True"), ("/closed-cursor/", "CursorWrapper")]
)
def test_what_has_been_closed_does_not_keep_it_from_parking(
    slots: Driver, using: str, path: str, text: str
) -> None:
    answer = slots.get(f"{path}?using={using}")
    assert (answer.text, answer.waits, answer.parks) == (text, [], 1)


def test_strict_mode_refuses_to_park_in_a_transaction(
    start: Start, django_app: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setenv("LAYBY_STRICT", "1")
    [slot] = start(django_app)
    slot.request(1, "/atomic/", HTTP_HOST="testserver")
    assert slot.answer()[0].aux == 500
    assert "transaction.atomic() on database 'default'" in caplog.text


def test_a_loop_of_the_applications_own_waits_in_place(slots: Driver) -> None:
    answer = slots.get("/by-hand/")
    assert (answer.text, answer.waits) == ("0.0 True", ["unsupported"])


def test_a_client_that_leaves_ends_its_request(slots: Driver) -> None:
    from project.models import Order

    slots.get("/cleanup/", cancel=True)
    assert Order.objects.filter(owner="cleanup").latest("pk").state == "cleaned"


def test_caches_are_per_slot_and_not_per_request(slots: Driver) -> None:
    by_thread: dict[int, set[tuple[int, ...]]] = {}
    for answer in slots.run(*(environ("/caches/") for _ in range(12))):
        seen = json.loads(answer.text)
        assert seen["before"] == seen["after"]
        thread, *backends = seen["before"]
        by_thread.setdefault(thread, set()).add(tuple(backends))
    assert len(by_thread) == 2
    assert all(len(backends) == 1 for backends in by_thread.values())


def test_a_session_in_the_cache_keeps_its_backend(start: Start, django_app: Any) -> None:
    from django.test import override_settings

    with override_settings(SESSION_ENGINE="django.contrib.sessions.backends.cache"):
        from django.core.handlers.wsgi import WSGIHandler

        assert Driver(start(WSGIHandler())).get("/session-cache/").text == "True True"


@pytest.fixture
def short_lived(postgres: str) -> Iterator[None]:
    """Connections that Django closes at the end of every request."""
    from django.db import connections

    options = connections.settings["pg"]
    options["CONN_MAX_AGE"] = 0
    yield
    options["CONN_MAX_AGE"] = None


@pytest.mark.usefixtures("short_lived")
def test_no_request_s_end_closes_the_connection_of_a_parked_one(
    start: Start, django_app: Any
) -> None:
    [slot] = start(django_app)
    slot.request(1, "/backends/", HTTP_HOST="testserver")
    park(slot, 1)
    # Django would close here, when another request begins, and when it ends.
    slot.request(2, "/hello/", HTTP_HOST="testserver")
    assert text(slot) == "hello"
    resume(slot, 1)
    park(slot, 1, 1)
    resume(slot, 1, 2)
    seen = json.loads(text(slot))["seen"]
    assert len({pid for pid, _ in seen}) == 1
    # Nothing is parked any more, so the connection was closed by the last one.
    slot.request(3, "/backends/", HTTP_HOST="testserver")
    park(slot, 3)
    resume(slot, 3)
    park(slot, 3, 1)
    resume(slot, 3, 2)
    assert {pid for pid, _ in json.loads(text(slot))["seen"]}.isdisjoint({pid for pid, _ in seen})


@pytest.mark.usefixtures("short_lived")
def test_a_half_read_iterator_keeps_its_connection_though_it_is_short_lived(slots: Driver) -> None:
    asked = [environ(f"/{path}/?using=pg") for path in ("iterator", "hello", "iterator", "hello")]
    answers = slots.run(*asked)
    assert [answer.text for answer in answers] == ["whole", "hello", "whole", "hello"]
    assert [answer.waits for answer in answers] == [["cursor"], [], ["cursor"], []]


@pytest.fixture
def pooled(postgres: str) -> Iterator[None]:
    """Connections out of Django's psycopg pool."""
    from django.db import connections

    options = connections.settings["pg"]
    connections["pg"].close()
    options["CONN_MAX_AGE"] = 0
    options["OPTIONS"]["pool"] = {"min_size": 1, "max_size": 4}
    yield
    connections["pg"].close_pool()
    del options["OPTIONS"]["pool"]
    options["CONN_MAX_AGE"] = None


@pytest.mark.usefixtures("pooled")
@pytest.mark.skipif(django.VERSION < (5, 1), reason="Django before 5.1 has no pool")
def test_a_connection_out_of_django_s_pool_does_not_keep_a_request_from_parking(
    slots: Driver,
) -> None:
    for answer in slots.run(*(environ("/backends/") for _ in range(6))):
        assert (answer.code, answer.parks, answer.waits) == (200, 2, [])
    assert slots.get("/atomic/?using=pg").waits == ["transaction"]


@pytest.mark.usefixtures("postgres")
def test_a_connection_that_died_while_its_request_was_parked_is_renewed(
    start: Start, django_app: Any
) -> None:
    [slot] = start(django_app)
    for request in (1, 2):
        slot.request(request, "/backends/", HTTP_HOST="testserver")
        park(slot, request)
    resume(slot, 1)
    park(slot, 1, 1)
    resume(slot, 1, 2)
    (dead,) = _pids(text(slot))
    os.kill(dead, signal.SIGTERM)
    while Path(f"/proc/{dead}").exists():
        threading.Event().wait(0.01)
    # One is parked still, and holds nothing of a connection that is not there.
    slot.request(3, "/backends/", HTTP_HOST="testserver")
    park(slot, 3)
    for request in (2, 3):
        resume(slot, request)
        park(slot, request, 1)
    resume(slot, 2, 2)
    assert len(_pids(text(slot)) - {dead}) == 1
    resume(slot, 3, 2)
    assert dead not in _pids(text(slot))


def _pids(body: str) -> set[int]:
    return {pid for pid, _ in json.loads(body)["seen"]}


@pytest.mark.parametrize("mode", ["greenlet", "wsgi"])
def test_a_request_whose_client_leaves_is_finished_as_any_other(
    start: Start, django_app: Any, mode: str
) -> None:
    from django.core.signals import request_finished
    from django.http import HttpRequest

    ended: list[str] = []
    closed = HttpRequest.close

    def close(request: HttpRequest) -> None:
        ended.append("closed")
        closed(request)

    def finished(**kwargs: Any) -> None:
        ended.append("finished")

    request_finished.connect(finished)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(HttpRequest, "close", close)
            [slot] = start(django_app, mode=mode)
            slot.request(1, "/sync/", HTTP_HOST="testserver")
            if mode == "greenlet":
                park(slot, 1)
            else:
                slot.expect("HOLD")
            slot.send("CANCEL", request=1, epoch=int(mode == "greenlet"))
            slot.expect("READY")
    finally:
        request_finished.disconnect(finished)
    assert ended == ["closed", "finished"]
