"""`layby.io`, `layby.parallel` and streams with Django: state, connections, transactions."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import asgiref.local
import pytest
from stepper import Slots, environ

import layby

TOKYO = ["Asia/Tokyo", "/checkout/"]
LIMA = ["America/Lima", "/checkout/"]
YES = {"de": "Ja", "fr": "Oui", "es": "Sí", "en-us": "Yes"}

databases = pytest.mark.parametrize("using", ["default", "pg"])


def on(using: str, request: pytest.FixtureRequest) -> str:
    if using == "pg":
        request.getfixturevalue("postgres")
    return using


def sign_in(slots: Slots, *names: str) -> list[dict[str, str]]:
    logins = slots.run(*(environ(f"/login/?how=sync&name={name}") for name in names))
    return [answer.cookies for answer in logins]


@databases
def test_twenty_users_keep_their_state_on_the_loop_and_after(
    slots: Slots, using: str, request: pytest.FixtureRequest
) -> None:
    on(using, request)
    users = [f"user{number}" for number in range(20)]
    languages = [list(YES)[number % 4] for number in range(20)]
    asked = [
        environ(f"/loop/io/?using={using}&language={language}", cookies=cookies)
        for language, cookies in zip(languages, sign_in(slots, *users), strict=True)
    ]
    backends: set[int] = set()
    for user, language, answer in zip(users, languages, slots.run(*asked), strict=True):
        assert answer.code == 200, answer
        seen = json.loads(answer.text)
        own = [user, language, YES[language]]
        assert seen["before"] == seen["inside"] == [*own, *TOKYO]
        assert seen["after"] == [*own, *LIMA]
        assert seen["session"] == "kept"
        assert seen["thread"] == "layby-loop"
        assert answer.waits == []
        assert len(answer.calls) == 5
        for backend, there in (*seen["backends"], *seen["beside"]):
            backends.add(backend)
            assert there == language
    # Never a thread or a connection besides those of the slots.
    assert len(backends) == 4


@databases
def test_gathered_calls_run_on_several_slots(
    slots: Slots, using: str, request: pytest.FixtureRequest
) -> None:
    on(using, request)
    seen = json.loads(slots.get(f"/loop/io/?using={using}").text)
    assert len({backend for backend, _ in seen["beside"][:3]}) == 3


def test_the_orm_and_layby_s_things_are_refused_inside(slots: Slots) -> None:
    seen = json.loads(slots.get("/loop/refused/").text)
    assert seen["seen"][0] == "SynchronousOnlyOperation"
    assert "use an asyncio client there" in seen["seen"][1]
    assert seen["after"]


def test_a_timeout_around_the_block_names_the_block(
    slots: Slots, caplog: pytest.LogCaptureFixture
) -> None:
    assert slots.get("/loop/timeout-around/").code == 500
    [record] = [each for each in caplog.records if each.exc_info]
    assert record.exc_info is not None
    assert record.exc_info[1] is not None
    assert "`async with layby.io:`" in " ".join(record.exc_info[1].__notes__)


def test_an_exception_of_the_block_is_an_ordinary_500(slots: Slots) -> None:
    answer = slots.get("/loop/raises/")
    assert answer.code == 500
    assert answer.header("X-Frame-Options") == "DENY"


def test_a_task_that_cancels_itself_is_seen_on_a_slot(slots: Slots) -> None:
    assert slots.get("/loop/cancels-itself/").text == "cancelled True"


@databases
def test_in_a_transaction_the_block_waits_in_place_and_its_calls_are_part_of_it(
    slots: Slots, using: str, request: pytest.FixtureRequest
) -> None:
    answer = slots.get(f"/loop/atomic/?using={on(using, request)}")
    assert (answer.text, answer.waits, answer.calls) == ("1", ["transaction"], [])


@databases
def test_a_half_read_iterator_keeps_the_block_in_place(
    slots: Slots, using: str, request: pytest.FixtureRequest
) -> None:
    answer = slots.get(f"/loop/half-read/?using={on(using, request)}")
    assert (answer.text, answer.waits) == ("True", ["cursor"])


def test_below_a_sync_only_middleware_the_block_waits_in_place(build: Any) -> None:
    from django.conf import settings

    slots = build(MIDDLEWARE=[*settings.MIDDLEWARE, "project.middleware.SyncOnly"])
    answer = slots.get("/loop/io/")
    seen = json.loads(answer.text)
    assert answer.waits == ["middleware"]
    assert seen["thread"] == "layby-loop"
    assert seen["inside"] == ["", "de", "Ja", *TOKYO]
    assert seen["after"] == ["", "de", "Ja", *LIMA]
    # One thread does it all.
    assert len({thread for thread, _ in (*seen["backends"], *seen["beside"])}) == 1


def test_a_view_on_an_event_loop_has_one_already(slots: Slots) -> None:
    assert slots.get("/loop/on-loop/").text == "True True"


@databases
def test_operations_run_on_slots_of_their_own_with_the_request_s_state(
    slots: Slots, using: str, request: pytest.FixtureRequest
) -> None:
    on(using, request)
    asked = [environ(f"/loop/parallel/?using={using}&language={each}") for each in YES]
    for language, answer in zip(YES, slots.run(*asked), strict=True):
        seen = json.loads(answer.text)
        assert [op[1:] for op in seen["ops"]] == [[language, number] for number in range(3)]
        assert len({op[0] for op in seen["ops"]}) == 3
        assert seen["after"] == language
        assert answer.waits == []


@databases
def test_operations_are_refused_in_a_transaction(
    slots: Slots, using: str, request: pytest.FixtureRequest
) -> None:
    answer = slots.get(f"/loop/parallel-atomic/?using={on(using, request)}")
    assert answer.text.startswith("layby.parallel() cannot be used here (transaction.atomic() on")
    assert answer.text.endswith("[]")
    assert answer.calls == []


@databases
def test_operations_are_refused_in_a_transaction_inside_io_too(
    slots: Slots, using: str, request: pytest.FixtureRequest
) -> None:
    answer = slots.get(f"/loop/parallel-atomic-io/?using={on(using, request)}")
    assert answer.text == "[True, True, False] [1]"


@databases
@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("transaction", "transaction.atomic() on database"),
        ("autocommit_off", "autocommit off on database"),
        ("begin", "a transaction begun by hand on database"),
        ("cursor", "an open cursor on database"),
    ],
)
def test_what_an_operation_leaves_open_is_its_error_and_is_closed(
    slots: Slots, using: str, what: str, said: str, request: pytest.FixtureRequest
) -> None:
    on(using, request)
    answer = slots.get(f"/loop/leaves-open/?using={using}&what={what}")
    assert answer.text.startswith("0 left open at the end of what it ran in a slot: " + said)
    assert len(answer.calls) == 4
    # And the slots go on as if nothing had been.
    for _ in range(4):
        assert slots.get(f"/loop/parallel/?using={using}").waits == []


def test_a_stream_may_be_inside_the_block(slots: Slots) -> None:
    answer = slots.get("/loop/stream/")
    expected = [b"de,", b"0 de layby-loop,", b"1 de layby-loop,", b"True"]
    assert answer.chunks == expected
    assert answer.waits == []
    assert len(answer.slots) == 4


# --- without the gateway ---


@pytest.fixture
def client(database: None) -> Any:
    from django.test import Client

    return Client()


ALONE = """
import asyncio, django
from django.conf import settings
from django.http import HttpResponse
from django.urls import path
from django.utils import translation
import layby

async def view(request):
    translation.activate("de")
    async with layby.io:
        await asyncio.sleep(0)
        inside = translation.get_language()
        translation.activate("fr")
    return HttpResponse(f"{inside} {translation.get_language()}")

urlpatterns = [path("", view)]
settings.configure(
    ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="x", INSTALLED_APPS=["layby.django"]
)
django.setup()
from django.test import Client
print(Client().get("/").content.decode())
"""


def test_in_a_process_that_never_was_a_worker_the_state_is_there_as_well() -> None:
    path = {"PYTHONPATH": str(Path(layby.__file__).parents[1])}
    ran = subprocess.run(
        [sys.executable, "-c", ALONE],
        env={**os.environ, **path, "PYTHONWARNINGS": "", "DJANGO_SETTINGS_MODULE": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.stdout.strip() == "de fr", ran.stderr


def test_under_the_test_client_it_rides_while_the_thread_waits(client: Any) -> None:
    seen = client.get("/loop/io/").json()
    assert seen["thread"] == "layby-loop"
    assert seen["inside"] == ["", "de", "Ja", *TOKYO]
    assert seen["after"] == ["", "de", "Ja", *LIMA]
    threads = {thread for thread, _ in (*seen["backends"], *seen["beside"])}
    assert threads == {threading.get_ident()}


def test_under_the_test_client_operations_run_one_after_the_other(client: Any) -> None:
    seen = client.get("/loop/parallel/").json()
    assert [[op[0], op[2]] for op in seen["ops"]] == [
        [threading.get_ident(), number] for number in range(3)
    ]
    if not hasattr(asgiref.local.Local, "_get_context_id"):
        # Before asgiref 3.8 languages belong to the thread, not to the context.
        assert [op[1] for op in seen["ops"]] == ["de"] * 3
        assert seen["after"] == "de"


def test_under_the_test_client_a_stream_may_be_inside_the_block(client: Any) -> None:
    parts = list(client.get("/loop/stream/"))
    assert parts == [b"de,", b"0 de layby-loop,", b"1 de layby-loop,", b"True"]


def test_under_the_test_client_a_transaction_is_seen_by_all(client: Any) -> None:
    from django.db import transaction
    from project.models import Order

    with transaction.atomic():
        Order.objects.create(owner="of the test", state="new")
        assert client.get("/loop/atomic/").content == b"1"
        transaction.set_rollback(True)


def test_under_the_test_client_operations_are_refused_as_they_will_be(client: Any) -> None:
    from django.test import TestCase

    class InACase(TestCase):
        databases = {"default"}  # noqa: RUF012

        def runTest(self) -> None:
            # The case's own transaction is none of the application's.
            assert len(client.get("/loop/parallel/").json()["ops"]) == 3
            seen = client.get("/loop/parallel-atomic/").content.decode()
            assert "cannot be used here (transaction.atomic() on" in seen
            assert client.get("/loop/parallel-atomic-io/").content == b"[True, True, False] [1]"

    result = InACase().run()
    assert result is not None
    assert result.wasSuccessful(), result.failures + result.errors


def test_under_asgi_the_block_is_a_no_op(database: None) -> None:
    from django.test import AsyncClient

    async def main() -> tuple[int, bytes]:
        answer = await AsyncClient().get("/loop/on-loop/")
        return answer.status_code, answer.content

    assert asyncio.run(main()) == (200, b"True True")
