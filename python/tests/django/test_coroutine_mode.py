"""The whole Django stack as coroutines: what a request must find again after a park."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
from stepper import Answer, Slots, environ

LANGUAGES = {"de": "Ja", "fr": "Oui", "es": "Sí", "en-us": "Yes"}
ZONES = ["Europe/Berlin", "Asia/Tokyo", "America/Lima", "UTC", "Africa/Cairo"]


def _sign_in(slots: Slots, names: list[str]) -> list[dict[str, str]]:
    logins = slots.run(*(environ(f"/login/?how=sync&name={name}") for name in names))
    tokens = slots.run(*(environ("/csrf/", cookies=answer.cookies) for answer in logins))
    return [
        {**signed_in.cookies, **token.cookies, "token": token.text}
        for signed_in, token in zip(logins, tokens, strict=True)
    ]


def _checkout(cookies: dict[str, str], number: int, using: str) -> dict[str, Any]:
    language = list(LANGUAGES)[number % len(LANGUAGES)]
    zone = ZONES[number % len(ZONES)]
    sent = {name: value for name, value in cookies.items() if name != "token"}
    form = {"language": language, "zone": zone, "note": f"note {number}"}
    form["csrfmiddlewaretoken"] = cookies["token"]
    return environ(f"/checkout/?using={using}", post=form, cookies=sent)


def _check_all_checkouts(answers: list[Answer], users: list[str], visits: int) -> list[Any]:
    results = []
    for number, (answer, user) in enumerate(zip(answers, users, strict=True)):
        assert answer.code == 200, answer
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
        assert answer.slots[0] != answer.slots[1]
        assert seen["moved"]
        assert answer.waits == []
        results.append(seen)
    return results


@pytest.mark.parametrize("using", ["default", "pg"])
def test_forty_parked_checkouts_keep_their_own_state(
    slots: Slots, using: str, request: pytest.FixtureRequest
) -> None:
    if using == "pg":
        request.getfixturevalue("postgres")
    users = [f"user{number}" for number in range(40)]
    cookies = _sign_in(slots, users)
    for visits in (1, 2):
        posts = [_checkout(each, number, using) for number, each in enumerate(cookies)]
        results = _check_all_checkouts(slots.run(*posts), users, visits)
    if using == "pg":
        pids = {pid for seen in results for pid in seen["backends"]}
        assert all(before != after for before, after in (seen["backends"] for seen in results))
        assert len(pids) == 4


def test_a_post_without_its_csrf_token_is_refused(slots: Slots) -> None:
    [cookies] = _sign_in(slots, ["user0"])
    post = _checkout({**cookies, "token": "x" * 64}, 0, "default")
    assert slots.run(post)[0].code == 403


@pytest.mark.parametrize("path", ["/user-after/", "/auser-after/"])
def test_the_user_may_be_asked_for_after_the_park(slots: Slots, path: str) -> None:
    if path == "/auser-after/":
        _needs_django(5, 0)
    [cookies] = _sign_in(slots, ["user7"])
    del cookies["token"]
    answer = slots.get(path, cookies=cookies)
    assert (answer.text, len(set(answer.slots))) == ("user7", 2)


@pytest.mark.parametrize("how", ["sync", "async"])
def test_a_login_after_the_park(slots: Slots, how: str) -> None:
    if how == "async":
        _needs_django(5, 0)
    answer = slots.get(f"/login/?how={how}&name=user3")
    assert answer.text == "user3"
    assert slots.get("/user-after/", cookies=answer.cookies).text == "user3"


@pytest.mark.parametrize(
    ("path", "code"), [("/fails/", 500), ("/missing/", 404), ("/no-such-url/", 404)]
)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_errors_are_django_s_own_answers(slots: Slots, path: str, code: int) -> None:
    answer = slots.get(path)
    assert answer.code == code
    assert answer.header("X-Frame-Options") == "DENY"


def test_locale_middleware_holds_its_language_over_the_park(slots: Slots) -> None:
    asked = [environ("/locale/", headers={"Accept-Language": each}) for each in LANGUAGES]
    answers = slots.run(*asked)
    expected = [f"{name} {name} {yes}" for name, yes in LANGUAGES.items()]
    assert [answer.text for answer in answers] == expected


def test_a_template_response_is_rendered_in_its_language(slots: Slots) -> None:
    assert slots.get("/template/").text.strip() == "template de Ja"


def test_async_orm_methods_run_on_the_slot(slots: Slots) -> None:
    answer = slots.get("/orm/")
    seen = json.loads(answer.text)
    assert seen == {"found": "a-methods", "names": ["a-methods"], "direct": True}
    assert len(set(answer.slots)) == 2


def test_class_based_views_park(slots: Slots) -> None:
    answer = slots.get("/class/")
    assert (answer.text, answer.waits, len(answer.slots)) == ("get False", [], 2)


def test_signals_reach_receivers_of_both_kinds(slots: Slots) -> None:
    _needs_django(5, 0)
    answer = slots.get("/signals/")
    seen = json.loads(answer.text)
    assert seen["answers"] == [1, 2]
    assert sorted(seen["robust"]) == ["1", "2", "ValueError('broken receiver')"]
    assert seen["heard"] == ["plain", "parks", "plain", "parks"]
    assert answer.waits == []


def test_sync_views_run_and_wait_in_place(slots: Slots) -> None:
    answer = slots.get("/sync/")
    assert (answer.text, answer.waits, len(answer.slots)) == ("slept 0.0", ["mode"], 1)


# A sleep of 0 gets as far as yielding something foreign; any other asks for the loop first.
@pytest.mark.parametrize("seconds", ["0", "0.001"])
def test_asyncio_outside_a_loop_is_explained(
    slots: Slots, caplog: pytest.LogCaptureFixture, seconds: str
) -> None:
    assert slots.get(f"/sleeps/?seconds={seconds}").code == 500
    [record] = [each for each in caplog.records if each.exc_info]
    assert record.exc_info is not None
    assert record.exc_info[1] is not None
    notes = " ".join(record.exc_info[1].__notes__)
    assert "@layby.django.on_event_loop" in notes
    assert "LAYBY_INLINE_ASYNC_VIEWS" in notes


def test_a_view_marked_for_the_event_loop_gets_one(slots: Slots) -> None:
    assert slots.get("/sleeps-on-loop/").text == "slept"


def test_async_to_sync_by_hand_has_its_loop_and_fetches_through_the_slot(slots: Slots) -> None:
    answer = slots.get("/by-hand/")
    assert (answer.text, answer.waits) == ("0.0 True", ["unsupported"])


def test_a_client_that_leaves_ends_its_request(slots: Slots) -> None:
    from django.core.signals import request_finished
    from project.models import Order

    import layby

    finished = []

    def note(**kwargs: Any) -> None:
        finished.append(threading.current_thread().name)

    request_finished.connect(note)
    try:
        answer = slots.get("/cleanup/", cancel=True)
    finally:
        request_finished.disconnect(note)
    assert isinstance(answer.error, layby.Cancelled)
    assert Order.objects.filter(owner="cleanup").latest("pk").state == "cleaned"
    assert len(finished) == 1


def test_caches_are_per_slot_and_not_per_request(slots: Slots) -> None:
    by_thread: dict[int, set[tuple[int, ...]]] = {}
    for answer in slots.run(*(environ("/caches/") for _ in range(12))):
        seen = json.loads(answer.text)
        assert seen["before"][0] != seen["after"][0]
        for thread, *backends in seen.values():
            by_thread.setdefault(thread, set()).add(tuple(backends))
    assert len(by_thread) == 4
    assert all(len(backends) == 1 for backends in by_thread.values())
    assert len(set.union(*by_thread.values())) == 4


def test_a_session_in_the_cache_changes_its_backend_with_the_slot(build: Any) -> None:
    slots = build(SESSION_ENGINE="django.contrib.sessions.backends.cache")
    assert slots.get("/session-cache/").text == "True True"


def test_nothing_of_a_request_stays_on_the_slot(slots: Slots) -> None:
    german = [environ("/locale/", headers={"Accept-Language": "de"}) for _ in range(8)]
    slots.run(*german)
    answers = slots.run(*(environ("/locale/") for _ in range(8)))
    assert {answer.text for answer in answers} == {"en-us en-us Yes"}


def _needs_django(*version: int) -> None:
    import django

    if version > django.VERSION:
        pytest.skip(f"Django {django.__version__} has no such method")
