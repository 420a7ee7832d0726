"""layby.testing: answers from a table, and what was side by side."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import flask
import httpx
import pytest
import requests
from django.conf import settings
from django.http import HttpRequest, JsonResponse
from django.test import Client, RequestFactory
from django.urls import path

import django
import layby
from layby.testing import Answer, Call, Failed, Fetches, UnexpectedFetch

SHIP = "https://ship.example/quote"
STOCK = "https://stock.example/items/7"
PAY = "https://pay.example/charge"


async def checkout() -> dict[str, Any]:
    ship, stock = await layby.gather(
        layby.get(SHIP, params={"zip": "80331"}), layby.get(STOCK), timeout=2
    )
    paid = await layby.post(PAY, json={"amount": ship.json()["price"]}, timeout=5)
    return {"left": stock.json()["left"], "status": paid.status_code}


def step(coroutine: Any) -> Any:
    """As layby.django steps a view where there is no loop."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("it waits for something that is not layby's")


def answers(fetches: Fetches) -> None:
    fetches.get(SHIP, json={"price": "4.90"})
    fetches.get(STOCK, json={"left": 3})
    fetches.post(PAY, status=201, text="paid", headers={"X-Id": "1"})


def test_a_coroutine_is_answered_and_its_plans_are_kept() -> None:
    with Fetches() as fetches:
        answers(fetches)
        assert step(checkout()) == {"left": 3, "status": 201}
    assert [str(call) for call in fetches.calls] == [
        f"GET {SHIP}?zip=80331",
        f"GET {STOCK}",
        f"POST {PAY}",
    ]
    first, second = fetches.plans
    assert (len(first.calls), first.join, first.timeout) == (2, "all", 2)
    assert (second.calls, second.timeout) == ((fetches.calls[2],), None)
    assert fetches.calls[2].json() == {"amount": "4.90"}
    assert fetches.calls[2].timeout == 5
    assert fetches.calls[2].headers["content-type"] == "application/json"
    fetches.assert_side_by_side(STOCK, SHIP)
    fetches.assert_side_by_side(SHIP, STOCK, join="all", timeout=2)
    fetches.assert_all_used()
    for wrong in ({"join": "any"}, {"timeout": 3}):
        with pytest.raises(AssertionError, match="no plan of"):
            fetches.assert_side_by_side(SHIP, STOCK, **wrong)  # type: ignore[arg-type]
    for urls in ((SHIP,), (SHIP, STOCK, PAY), (SHIP, PAY)):
        with pytest.raises(AssertionError, match=re.escape(f"GET {STOCK} [join 'all', timeout 2]")):
            fetches.assert_side_by_side(*urls)


def test_it_is_the_same_under_an_event_loop() -> None:
    with Fetches() as fetches:
        answers(fetches)
        assert asyncio.run(checkout()) == {"left": 3, "status": 201}


def test_an_unexpected_fetch_fails_where_it_is_made_and_at_the_end() -> None:
    with pytest.raises(UnexpectedFetch, match="at the end") as raised, Fetches() as fetches:  # noqa: PT012
        fetches.get(SHIP, text="")
        with pytest.raises(UnexpectedFetch, match=f"POST {SHIP}") as inside:
            layby.post(SHIP).result()
        assert f"GET {SHIP}" in str(inside.value)
        try:
            layby.get(f"{PAY}?at+the+end".replace("+", " ")).result()
        except Exception:
            print("a view that catches everything")
        fetches.unexpected[1:] = [Call("GET", "at the end", layby.Headers([]), b"", None)]
    assert SHIP in str(raised.value)


def test_a_failure_of_the_test_is_not_hidden_by_unexpected_fetches() -> None:
    with pytest.raises(ZeroDivisionError), Fetches():  # noqa: PT012
        with pytest.raises(UnexpectedFetch):
            layby.get(SHIP).result()
        raise ZeroDivisionError


def test_urls_are_compared_whole_or_by_patterns() -> None:
    with Fetches() as fetches:
        fetches.get(re.compile(r"/items/\d+$"), text="any item")
        fetches.get("https://stock.example/find?a=1&b=2", text="found")
        fetches.get("https://stock.example/find", text="something")
        fetches.get("https://stock.example/find?b=3", text="three")
        fetches.on("*", "https://any.example", text="any method")
        text = {
            url: layby.get(f"https://{url}").result().text
            for url in (
                "stock.example/items/9",
                "stock.example/find?b=3",
                "stock.example/find?c=3",
                "any.example/",
            )
        }
        assert list(text.values()) == ["any item", "three", "something", "any method"]
        assert layby.delete("https://any.example").result().text == "any method"
        assert [str(call) for call in fetches.calls_to("https://any.example/", "DELETE")] == [
            "DELETE https://any.example/"
        ]
        with pytest.raises(AssertionError, match=r"find\?a=1&b=2"):
            fetches.assert_all_used()


def test_answers_come_in_their_order_and_may_be_made_from_the_call() -> None:
    def made(call: Call) -> Answer:
        return Answer(json={"zip": call.json()["zip"]})

    with Fetches() as fetches:
        fetches.post(SHIP, Answer(503), layby.ConnectError, made)
        assert layby.post(SHIP, json={}).result().status_code == 503
        with pytest.raises(layby.ConnectError):
            layby.post(SHIP, json={}).result()
        for zip_code in ("1", "2"):
            assert layby.post(SHIP, json={"zip": zip_code}).result().json() == {"zip": zip_code}


@pytest.mark.parametrize(
    ("error", "phase"),
    [
        (layby.ConnectError, "connect"),
        (layby.Timeout, "head"),
        (layby.Refused, "dns"),
        (layby.TooLarge, "body"),
        (layby.FetchError, "head"),
    ],
)
def test_a_fetch_fails_as_it_would(error: type[layby.FetchError], phase: str) -> None:
    with Fetches() as fetches:
        fetches.get(SHIP, error)
        with pytest.raises(error) as raised:
            layby.get(SHIP).result()
    assert (type(raised.value), raised.value.phase) == (error, phase)


def test_a_failure_has_its_words_and_phase() -> None:
    with Fetches() as fetches:
        fetches.get(SHIP, Failed(layby.Timeout, "too slow", phase="body"))
        with pytest.raises(layby.Timeout, match="too slow") as raised:
            layby.get(SHIP).result()
    assert raised.value.phase == "body"


def test_what_cannot_be_an_answer_is_refused_at_once() -> None:
    fetches = Fetches()
    with pytest.raises(TypeError, match="ValueError"):
        fetches.get(SHIP, ValueError)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="one of json"):
        fetches.get(SHIP, json={}, text="")
    with pytest.raises(TypeError, match="either"):
        fetches.get(SHIP, Answer(), status=201)


def test_time_is_simulated() -> None:
    begun = time.monotonic()
    with Fetches() as fetches:
        fetches.get(SHIP, text="slow", seconds=20)
        fetches.get(STOCK, text="quick", seconds=5)
        fetches.get(PAY, Failed(layby.ConnectError, seconds=1))
        join_any = layby.gather(layby.get(SHIP), layby.get(STOCK), join="any").result()
        first_ok = layby.gather(layby.get(PAY), layby.get(SHIP), join="first_ok").result()
        two = layby.gather(
            layby.get(SHIP), layby.gather(layby.get(STOCK), layby.sleep(6)), layby.sleep(7), join=2
        ).result()
        with pytest.raises(layby.Timeout) as of_gather:
            layby.gather(layby.get(SHIP), timeout=19).result()
        with pytest.raises(layby.Timeout) as of_fetch:
            layby.get(SHIP, timeout=19).result()
        kept = layby.gather(
            layby.get(STOCK), layby.get(SHIP), timeout=10, return_exceptions=True
        ).result()
        assert layby.gather().result() == []
    assert [r and r.text for r in join_any] == [None, "quick"]
    assert [r and r.text for r in first_ok] == [None, "slow"]
    assert two[0] is None
    assert (two[1][0].text, two[1][1], two[2]) == ("quick", 6.0, 7.0)
    assert (of_gather.value.phase, of_fetch.value.phase) == ("join", "head")
    assert kept[0].text == "quick"
    assert isinstance(kept[1], layby.Timeout)
    assert join_any[1].elapsed.total_seconds() == 5
    assert time.monotonic() - begun < 2
    inner = fetches.plans[2].gathers[0]
    assert ([str(call) for call in inner.calls], inner.sleeps) == ([f"GET {STOCK}"], (6.0,))
    assert fetches.plans[2].sleeps == (7.0,)
    fetches.assert_side_by_side(STOCK)


def test_what_ended_before_is_not_fetched_again() -> None:
    with Fetches() as fetches:
        fetches.get(SHIP, text="a")
        fetches.get(STOCK, text="b")
        ship = layby.get(SHIP)
        ship.result()
        both = layby.gather(ship, layby.get(STOCK)).result()
    assert [r.text for r in both] == ["a", "b"]
    assert [str(call) for call in fetches.plans[1].calls] == [f"GET {STOCK}"]


def test_redirects_are_followed_through_the_table() -> None:
    with Fetches() as fetches:
        fetches.post("https://a.example/", status=303, headers={"Location": "/there"})
        fetches.get("https://a.example/there", text="here")
        fetches.get("https://a.example/round", status=302, headers={"Location": "/round"})
        followed = layby.post("https://a.example/", json={}, follow_redirects=True).result()
        stayed = layby.post("https://a.example/", json={}).result()
        with pytest.raises(layby.FetchError, match="20 redirects"):
            layby.get("https://a.example/round", follow_redirects=True).result()
    assert (followed.text, followed.url) == ("here", "https://a.example/there")
    assert stayed.status_code == 303
    assert [str(call) for call in fetches.calls[:3]] == [
        "POST https://a.example/",
        "GET https://a.example/there",
        "POST https://a.example/",
    ]


def test_transports_are_answered_too(patched: None) -> None:
    async def asynchronous() -> int:
        async with httpx.AsyncClient() as client:
            return int((await client.post(PAY, files={"photo": b"bytes"})).status_code)

    with Fetches() as fetches:
        fetches.get(SHIP, status=302, headers={"Location": STOCK})
        fetches.get(STOCK, Failed(layby.Timeout), Answer(json={"left": 3}))
        fetches.post(PAY, status=201)
        with requests.Session() as session:
            with pytest.raises(requests.ReadTimeout):
                session.get(SHIP, timeout=3)
            assert session.get(SHIP, verify=False).json() == {"left": 3}
            parts = (part for part in (b"from a ", b"generator"))
            assert session.post(PAY, data=parts).status_code == 201
        with httpx.Client(verify=False, follow_redirects=True) as client:
            assert client.get(SHIP).json() == {"left": 3}
        assert step(asynchronous()) == 201
        assert asyncio.run(asynchronous()) == 201
    # Redirects are the library's, so each request is a plan.
    assert len(fetches.plans) == len(fetches.calls) == 9
    assert fetches.calls[0].timeout == 6
    assert fetches.calls_to(PAY)[0].content == b"from a generator"
    assert b"bytes" in fetches.calls_to(PAY)[1].content


def test_a_relayed_stream_is_answered_too() -> None:
    ended: list[Any] = []
    app = flask.Flask(__name__)

    @app.get("/")
    def relayed() -> Any:
        return layby.stream(layby.get(SHIP), on_done=ended.append)

    with Fetches() as fetches:
        fetches.get(SHIP, Answer(text="streamed", headers={"X-Id": "1"}), layby.ConnectError)
        response = app.test_client().get("/")
        assert (response.data, response.headers["x-id"]) == (b"streamed", "1")
        response.close()
        assert app.test_client().get("/").status_code == 502
    assert [(c.status, c.body, c.ended) for c in ended[:1]] == [(200, b"streamed", "complete")]


async def django_view(request: HttpRequest) -> JsonResponse:
    return JsonResponse(await checkout())


def sync_view(request: HttpRequest) -> JsonResponse:
    return JsonResponse(layby.get(STOCK).result().json())


class Urls:
    urlpatterns = (path("checkout", django_view), path("stock", sync_view))


@pytest.fixture
def with_django() -> None:
    if not settings.configured:
        settings.configure(
            INSTALLED_APPS=["layby.django"],
            ROOT_URLCONF=Urls,
            ALLOWED_HOSTS=["testserver"],
            SECRET_KEY="secret",
            DATABASES={},
        )
        django.setup()


def test_views_of_django_are_answered(with_django: None) -> None:
    with Fetches() as fetches:
        answers(fetches)
        client = Client()
        assert client.get("/checkout").json() == {"left": 3, "status": 201}
        assert client.get("/stock").json() == {"left": 3}
        assert step(django_view(RequestFactory().get("/"))).status_code == 200
        fetches.get(STOCK, layby.Timeout)
        with pytest.raises(layby.Timeout):
            client.get("/stock")
    with pytest.raises(UnexpectedFetch, match=STOCK), Fetches():
        client.get("/stock")


def test_views_of_flask_are_answered() -> None:
    app = flask.Flask(__name__)

    @app.get("/stock")
    def stock() -> Any:
        return layby.get(STOCK).result().json()

    with Fetches() as fetches:
        answers(fetches)
        assert app.test_client().get("/stock").get_json() == {"left": 3}


def test_contexts_nest_and_end() -> None:
    with Fetches() as outer:
        outer.get(SHIP, text="outer")
        with Fetches() as inner:
            inner.get(SHIP, text="inner")
            assert layby.get(SHIP).result().text == "inner"
        assert layby.get(SHIP).result().text == "outer"
    with pytest.raises(layby.ConnectError):
        layby.get("http://127.0.0.1:1/").result()


STORY = """
import layby

def test_answered(layby_fetches):
    layby_fetches.get("https://ship.example/quote", json={"price": 1})
    assert layby.get("https://ship.example/quote").result().json() == {"price": 1}

def test_swallowed(layby_fetches):
    try:
        layby.get("https://ship.example/quote").result()
    except Exception:
        pass
"""


def test_the_fixture_of_pytest_is_in_the_package(tmp_path: Path) -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert project["project"]["entry-points"]["pytest11"] == {"layby": "layby._pytest"}
    story = tmp_path / "test_story.py"
    story.write_text(STORY)
    # Not by the entry point: whoever runs this may have another version installed.
    options = ["-p", "layby._pytest", "-p", "no:cacheprovider", "-q", "--rootdir", str(tmp_path)]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(story)],
        env={
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "PYTHONPATH": str(Path(layby.__file__).parents[1]),
        },
        capture_output=True,
        text=True,
    )
    assert "2 passed, 1 error" in run.stdout, run.stdout
    assert "no answer for GET https://ship.example/quote" in run.stdout
