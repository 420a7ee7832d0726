"""Blocking `async def` views without the gateway, and applications that know no layby."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
# The project, and the very layby that is being tested, whatever is installed.
PATH = os.pathsep.join((str(HERE), str(HERE.parents[1] / "src")))


@pytest.fixture
def client(database: None) -> Any:
    from django.test import Client

    return Client()


def test_a_blocking_async_view_under_the_test_client(client: Any) -> None:
    assert client.get("/blocking/").json() == {"state": "paid"}


@pytest.mark.parametrize("path", ["/orm/", "/class/", "/atomic/", "/iterator/", "/template/"])
def test_other_views_under_the_test_client(client: Any, path: str) -> None:
    assert client.get(path).status_code == 200


def test_errors_under_the_test_client_are_raised_as_ever(client: Any) -> None:
    with pytest.raises(ValueError, match="after the park"):
        client.get("/fails/")


def test_a_login_under_the_test_client(client: Any) -> None:
    client.force_login(_user("user1"))
    assert client.get("/user-after/").content == b"user1"


def test_an_asynchronous_stream_under_the_test_client(client: Any) -> None:
    response = client.get("/async-stream/")
    assert b"".join(response) == b"0:True:en-us,1:True:en-us,2:True:en-us,"


def test_request_factory_and_handler(database: None) -> None:
    from django.core.handlers.base import BaseHandler
    from django.test import RequestFactory

    handler = BaseHandler()
    handler.load_middleware()
    response = handler.get_response(RequestFactory().get("/blocking/"))
    assert json.loads(response.content) == {"state": "paid"}


def test_asyncio_in_a_view_is_explained(client: Any) -> None:
    with pytest.raises(RuntimeError, match="no running event loop") as caught:
        client.get("/sleeps/?seconds=0.001")
    assert "@layby.django.on_event_loop" in "".join(caught.value.__notes__)


def test_a_view_marked_for_the_event_loop_gets_one(client: Any) -> None:
    assert client.get("/sleeps-on-loop/").content == b"slept"


def test_async_to_sync_by_hand_keeps_its_loop(client: Any) -> None:
    assert client.get("/by-hand/").content == b"0.0 True"


def test_the_async_client_has_its_event_loop_as_ever(database: None) -> None:
    from django.core.exceptions import SynchronousOnlyOperation
    from django.test import AsyncClient

    async def visit() -> None:
        client = AsyncClient()
        assert (await client.get("/sleeps/?seconds=0.001")).content == b"slept"
        assert (await client.get("/sleeps-on-loop/")).content == b"slept"
        assert (await client.get("/ahello/")).content == b"hello"
        with pytest.raises(SynchronousOnlyOperation):
            await client.get("/blocking/")

    asyncio.run(visit())


def test_asgi_below_a_synchronous_middleware_has_its_event_loop(database: None) -> None:
    from django.conf import settings
    from django.test import AsyncClient, override_settings

    async def visit() -> bytes:
        response = await AsyncClient().get("/sleeps/?seconds=0.001")
        assert response["X-Sync-Only"] == "seen"
        return bytes(response.content)

    with override_settings(MIDDLEWARE=[*settings.MIDDLEWARE, "project.middleware.SyncOnly"]):
        assert asyncio.run(visit()) == b"slept"


def test_async_signals_on_a_loop_are_django_s(database: None) -> None:
    from django.dispatch import Signal

    if not hasattr(Signal, "asend"):
        pytest.skip("this Django has no asend")
    signal = Signal()

    async def receiver(**named: Any) -> str:
        await asyncio.sleep(0.001)
        return "heard"

    signal.connect(receiver)
    assert [answer for _, answer in asyncio.run(signal.asend(sender=None))] == ["heard"]
    assert [answer for _, answer in asyncio.run(signal.asend_robust(sender=None))] == ["heard"]


def _serve(*command: str, **variables: str) -> Any:
    return _server([sys.executable, *command], {**os.environ, "PYTHONPATH": PATH, **variables})


RUNSERVER = ("-m", "django", "runserver", "--noreload", "--nothreading", "127.0.0.1:0")
GUNICORN = ("-m", "gunicorn", "-b", "127.0.0.1:0", "project.wsgi:application")


@pytest.mark.parametrize("command", [RUNSERVER, GUNICORN], ids=["runserver", "gunicorn"])
def test_a_blocking_async_view_under_other_servers(
    database: None, command: tuple[str, ...]
) -> None:
    if command is GUNICORN:
        pytest.importorskip("gunicorn")
    with _serve(*command) as base:
        assert _get(base + "/blocking/") == (200, '{"state": "paid"}')
        assert _get(base + "/async-stream/") == (200, "0:True:en-us,1:True:en-us,2:True:en-us,")
        assert _get(base + "/sleeps-on-loop/") == (200, "slept")
        assert _get(base + "/fails/")[0] == 500


@pytest.mark.parametrize("variables", [{"TEST_INSTALLED": "0"}, {"TEST_INLINE": "0"}])
def test_without_it_views_run_on_django_s_event_loop(
    database: None, variables: dict[str, str]
) -> None:
    pytest.importorskip("gunicorn")
    with _serve(*GUNICORN, **variables) as base:
        assert _get(base + "/sleeps/?seconds=0.001") == (200, "slept")
        assert _get(base + "/blocking/")[0] == 500


UNAWARE = """
import asyncio, sys
import django
from django.conf import settings
from django.http import HttpResponse
from django.urls import path

async def sleeps(request):
    await asyncio.sleep(0.001)
    return HttpResponse("slept")

urlpatterns = [path("", sleeps)]
settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="x")
django.setup()
if "aware" in sys.argv:
    import layby

def run():
    from django.core.wsgi import get_wsgi_application
    from layby.django import application
    app = application(get_wsgi_application())
    from stepper import Slots  # which itself refers to layby, so not earlier
    with Slots(app, 2) as slots:
        print(slots.get("/").status)

run()
"""


@pytest.mark.parametrize(
    ("argument", "status"), [("unaware", "200 OK"), ("aware", "500 Internal Server Error")]
)
def test_an_application_without_layby_runs_as_under_wsgi(argument: str, status: str) -> None:
    """Its `async def` views have an event loop; with layby they are stepped without one."""
    ran = subprocess.run(
        [sys.executable, "-c", UNAWARE, argument],
        env={**os.environ, "PYTHONPATH": PATH, "PYTHONWARNINGS": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.strip() == status, ran.stderr


@contextmanager
def _server(command: list[str], environment: dict[str, str]) -> Iterator[str]:
    """Run a server on a port of its choice; its base URL, once it listens."""
    with subprocess.Popen(
        command,
        env={**environment, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield _address(process)
        finally:
            process.terminate()
            process.communicate()


def _address(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    output = ""
    for line in process.stdout:
        output += line
        if found := re.search(r"(?:Listening at:|development server at) (http://[\d.]+:\d+)", line):
            return found[1]
    raise AssertionError(f"the server ended before it listened:\n{output}")


def _get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def _user(name: str) -> Any:
    from django.contrib.auth.models import User

    return User.objects.get(username=name)
