"""Things to wait for: their plans, their results, and that they run once.

A scripted waiter stands for the gateway: it records the plan and gives its outcomes.
"""

from __future__ import annotations

import asyncio
import gc
import json
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context
from typing import Any

import pytest
from fakegateway import response

import layby
from layby import _plan
from layby._drive import drive
from layby._job import Job, tls


class Gateway:
    """Answers each plan with the next of `results`, in the words of the protocol."""

    def __init__(self) -> None:
        self.results: list[list[Any]] = []
        self.plans: list[Any] = []
        self.bodies: list[bytes] = []

    def wait_in_place(self, job: Job, suspend: Any, reason: str, detail: str = "") -> Any:
        head, body = suspend.encode(limit=1 << 20)
        self.plans.append(json.loads(head))
        self.bodies.append(body)
        results = json.dumps(nested(self.results.pop(0))).encode()
        return _plan.decode(results, lambda offset, length: b"0123456789"[offset : offset + length])


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    gateway = Gateway()
    tls.job = Job(request=1, epoch=0, environ={}, context=Context(), slot=0)
    tls.waiter = gateway
    yield gateway
    tls.job = None
    tls.waiter = None


def nested(results: Any) -> Any:
    """Lists stand for the results of gathers."""
    return {"results": [nested(r) for r in results]} if isinstance(results, list) else results


def fail(kind: str = "failed", phase: str = "head") -> dict[str, Any]:
    return {"error": kind, "phase": phase, "message": "m", "url": "http://x/", "seconds": 0.1}


def get(name: str = "a") -> layby.Fetch:
    return layby.get(f"http://{name}.example/")


async def awaited(thing: Any) -> Any:
    return await thing


def test_a_plan_has_the_form_of_the_protocol(gateway: Gateway) -> None:
    gateway.results = [[response(), None, None]]
    layby.gather(
        layby.post("http://a.example/x", content=b"abc", timeout=5, follow_redirects=True),
        layby.sleep(0.5),
        layby.gather(layby.put("http://b.example/", content=b"de"), get(), join=2, timeout=1.5),
        join="any",
        timeout=10.0,
    ).result()
    agent = f"python-layby/{layby.__version__}"
    headers = [["Accept", "*/*"], ["User-Agent", agent]]
    assert gateway.plans == [
        {
            "gather": [
                {
                    "fetch": {
                        "method": "POST",
                        "url": "http://a.example/x",
                        "headers": headers,
                        "timeout": 5,
                        "follow": True,
                        "body": [0, 3],
                    }
                },
                {"sleep": 0.5},
                {
                    "gather": [
                        {
                            "fetch": {
                                "method": "PUT",
                                "url": "http://b.example/",
                                "headers": headers,
                                "body": [3, 2],
                            }
                        },
                        {
                            "fetch": {
                                "method": "GET",
                                "url": "http://a.example/",
                                "headers": headers,
                            }
                        },
                    ],
                    "join": 2,
                    "timeout": 1.5,
                },
            ],
            "join": "any",
            "timeout": 10.0,
        }
    ]
    assert gateway.bodies == [b"abcde"]


@pytest.mark.parametrize("ask", [lambda thing: thing.result(), lambda t: drive(awaited(t))])
def test_a_fetch_runs_once_whoever_asks(gateway: Gateway, ask: Any) -> None:
    gateway.results = [[response(b"012")]]
    fetch = get()
    first = ask(fetch)
    assert first.content == b"012"
    assert ask(fetch) is first
    assert fetch.result() is first
    assert drive(awaited(fetch)) is first
    assert layby.gather(fetch).result() == [first]
    assert len(gateway.plans) == 1


def test_a_failed_fetch_raises_the_same_error_each_time(gateway: Gateway) -> None:
    gateway.results = [[fail("timeout", "body")]]
    fetch = get()
    errors = []
    for _ in range(3):
        with pytest.raises(layby.Timeout) as caught:
            fetch.result()
        errors.append(caught.value)
    assert errors[0] is errors[1] is errors[2]
    assert (errors[0].method, errors[0].url, errors[0].phase) == ("GET", "http://x/", "body")
    assert len(gateway.plans) == 1


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("connect", layby.ConnectError),
        ("timeout", layby.Timeout),
        ("refused", layby.Refused),
        ("too_large", layby.TooLarge),
        ("failed", layby.FetchError),
    ],
)
def test_every_error_has_its_exception(gateway: Gateway, kind: str, error: Any) -> None:
    gateway.results = [[fail(kind)]]
    with pytest.raises(error) as caught:
        get().result()
    assert type(caught.value) is error


def test_all_gives_the_results_in_order(gateway: Gateway) -> None:
    gateway.results = [[response(b"0"), {"slept": 0.1}, [response(b"1", at=1)]]]
    first, slept, inner = layby.gather(get("a"), layby.sleep(0.1), layby.gather(get("b"))).result()
    assert (first.content, slept, inner[0].content) == (b"0", 0.1, b"1")


def test_all_raises_its_first_failure_once_all_have_ended(gateway: Gateway) -> None:
    gateway.results = [[response(b"0"), fail("timeout"), fail("connect")]]
    a, b, c = get("a"), get("b"), get("c")
    with pytest.raises(layby.Timeout):
        layby.gather(a, b, c).result()
    # What did not fail is there all the same.
    assert a.result().content == b"0"
    with pytest.raises(layby.ConnectError):
        c.result()
    assert len(gateway.plans) == 1


def test_exceptions_can_be_had_as_results(gateway: Gateway) -> None:
    gateway.results = [[fail("timeout"), response()]]
    error, answer = layby.gather(get("a"), get("b"), return_exceptions=True).result()
    assert isinstance(error, layby.Timeout)
    assert answer.status_code == 200


@pytest.mark.parametrize("join", ["any", 1])
def test_what_was_not_needed_is_none(gateway: Gateway, join: Any) -> None:
    gateway.results = [[None, response(b"0")]]
    a, b = get("a"), get("b")
    none, answer = layby.gather(a, b, join=join).result()
    assert none is None
    assert answer.content == b"0"
    with pytest.raises(layby.Error, match="cannot be waited for again"):
        a.result()


def test_a_failure_that_met_the_join_is_raised(gateway: Gateway) -> None:
    gateway.results = [[None, fail("connect")]] * 2
    with pytest.raises(layby.ConnectError):
        layby.gather(get("a"), get("b"), join="any").result()
    none, error = layby.gather(get("a"), get("b"), join="any", return_exceptions=True).result()
    assert none is None
    assert isinstance(error, layby.ConnectError)


def test_first_ok_gives_the_first_2xx_alone(gateway: Gateway) -> None:
    gateway.results = [[response(status=503), fail(), response(b"0"), None]]
    results = layby.gather(get("a"), get("b"), get("c"), get("d"), join="first_ok").result()
    assert [r and r.status_code for r in results] == [None, None, 200, None]


def test_first_ok_without_any_2xx_raises_its_first_failure(gateway: Gateway) -> None:
    gateway.results = [[response(status=503), fail("timeout"), fail("connect")]]
    with pytest.raises(layby.Timeout):
        layby.gather(get("a"), get("b"), get("c"), join="first_ok").result()


def test_first_ok_without_any_2xx_or_failure_gives_all(gateway: Gateway) -> None:
    gateway.results = [[response(status=503), response(status=404)]]
    results = layby.gather(get("a"), get("b"), join="first_ok").result()
    assert [answer.status_code for answer in results] == [503, 404]


def test_a_sleep_never_meets_first_ok(gateway: Gateway) -> None:
    nap = layby.sleep(1)
    gateway.results = [[{"slept": 1.0}], [{"done": True}, response()]]
    nap.result()
    results = layby.gather(nap, get("a"), join="first_ok").result()
    assert gateway.plans[-1]["gather"][0] == {"done": False}
    assert results[0] is None
    assert results[1].status_code == 200


def test_a_sleep_spoils_no_gather(gateway: Gateway) -> None:
    nap, ok = layby.sleep(1), layby.gather(layby.sleep(2), get("b"))
    gateway.results = [[{"slept": 1.0}], [[{"slept": 2.0}, response()], None]]
    nap.result()
    results = layby.gather(ok, layby.gather(nap, get("a")), join="first_ok").result()
    assert gateway.plans[-1]["gather"][1]["gather"][0] == {"done": True}
    assert results[0][0] == 2.0
    assert results[1] is None


def test_a_nested_failure_is_that_of_the_outer_gather(gateway: Gateway) -> None:
    gateway.results = [[[fail("refused")], response()]]
    inner = layby.gather(get("a"))
    with pytest.raises(layby.Refused):
        layby.gather(inner, get("b")).result()
    with pytest.raises(layby.Refused):
        inner.result()


def test_what_has_ended_is_done_in_the_plan_and_counts(gateway: Gateway) -> None:
    ok, bad, new = get("ok"), get("bad"), get("new")
    gateway.results = [
        [response(b"0")],
        [response(status=500)],
        [{"done": True}] * 2 + [response()],
    ]
    first = ok.result()
    bad.result()
    results = layby.gather(ok, bad, new).result()
    assert gateway.plans[-1]["gather"][:2] == [{"done": True}, {"done": False}]
    assert results[0] is first
    assert [answer.status_code for answer in results] == [200, 500, 200]


@pytest.mark.parametrize(
    ("join", "statuses"),
    [("any", [500, None, None]), ("first_ok", [None, 200, None]), (2, [500, 200, None])],
)
def test_a_join_that_is_met_already_runs_nothing(
    gateway: Gateway, join: Any, statuses: list[Any]
) -> None:
    bad, ok, new = get("bad"), get("ok"), get("new")
    gateway.results = [[response(status=500)], [response()], [response()]]
    bad.result()
    ok.result()
    results = layby.gather(bad, ok, new, join=join).result()
    assert [r and r.status_code for r in results] == statuses
    assert len(gateway.plans) == 2
    # It never ran, so it still can.
    assert new.result().status_code == 200


def test_a_thing_given_twice_runs_once(gateway: Gateway) -> None:
    gateway.results = [[response(b"0")]]
    fetch = get()
    one, two = layby.gather(fetch, fetch).result()
    assert one is two
    assert len(gateway.plans[0]["gather"]) == 1


def test_a_thing_in_two_places_of_one_plan_runs_once(gateway: Gateway) -> None:
    gateway.results = [[response(), {"results": [{"done": True}, response(status=404)]}]]
    a, b = get("a"), get("b")
    outer = layby.gather(a, layby.gather(a, b)).result()
    [plan] = gateway.plans
    assert plan["gather"][1]["gather"][0] == {"done": True}
    assert outer[0] is outer[1][0] is a.result()
    assert outer[1][1].status_code == 404


def test_a_failure_of_a_shared_thing_is_seen_at_both_places(gateway: Gateway) -> None:
    failed = {"error": "connect", "phase": "connect", "message": "nobody", "url": "http://a/"}
    gateway.results = [[{"results": [failed]}, {"done": True}]]
    a = get("a")
    inner = layby.gather(a, return_exceptions=True)
    [[error], again] = layby.gather(inner, a, return_exceptions=True).result()
    assert error is again
    assert isinstance(error, layby.ConnectError)


@pytest.mark.parametrize("own", [{"join": "any"}, {"join": 1}, {"timeout": 1}])
def test_a_thing_cannot_be_shared_with_a_gather_that_may_end_without_it(
    gateway: Gateway, own: Any
) -> None:
    gateway.results = [[response()], [response()]]
    a, b = get("a"), get("b")
    with pytest.raises(layby.Error, match="in two gathers at a time"):
        layby.gather(a, layby.gather(b, a, **own)).result()
    # Nothing was begun.
    assert gateway.plans == []
    assert a.result().status_code == b.result().status_code == 200


def test_a_gather_of_nothing_is_nothing(gateway: Gateway) -> None:
    assert layby.gather().result() == []
    assert gateway.plans == []


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"join": "some"}, ValueError),
        ({"join": 0}, ValueError),
        ({"join": 3}, ValueError),
        ({"join": True}, TypeError),
        ({"join": 1.5}, TypeError),
        ({"timeout": 0}, ValueError),
        ({"timeout": float("inf")}, ValueError),
    ],
)
@pytest.mark.filterwarnings("ignore::layby.UnusedWarning")
def test_a_gather_that_makes_no_sense_is_refused(arguments: Any, error: Any) -> None:
    with pytest.raises(error):
        layby.gather(get("a"), get("b"), **arguments)


def test_only_layby_s_things_can_be_gathered() -> None:
    coroutine = awaited(None)
    with pytest.raises(TypeError, match="not 'coroutine'"):
        layby.gather(coroutine)  # type: ignore[arg-type]
    coroutine.close()


@pytest.mark.parametrize("seconds", [-1, float("nan"), "1"])
def test_a_sleep_takes_a_number_of_seconds(seconds: Any) -> None:
    with pytest.raises(ValueError, match="seconds"):
        layby.sleep(seconds)


@pytest.mark.parametrize("timeout", [0, -1, float("nan")])
def test_a_timeout_is_a_number_of_seconds(timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout"):
        layby.get("http://a.example/", timeout=timeout)


@pytest.mark.parametrize(
    "results",
    [[], [response(), response()], [{"slept": 1.0}], [[]], [{"done": True}]],
)
def test_results_of_another_shape_are_an_error(gateway: Gateway, results: Any) -> None:
    gateway.results = [results]
    with pytest.raises(layby.Error, match="shape of the plan"):
        get().result()


@pytest.mark.parametrize("join", ["all", "any", "first_ok", 2])
def test_results_that_do_not_meet_the_join_are_an_error(gateway: Gateway, join: Any) -> None:
    gateway.results = [[None, None, None]]
    with pytest.raises(layby.Error, match="do not meet the join"):
        layby.gather(get("a"), get("b"), get("c"), join=join).result()


def test_a_thing_that_is_never_used_warns() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        layby.get("http://a.example/?token=t")
        layby.gather(layby.sleep(1))
        gc.collect()
    messages = sorted(str(w.message) for w in caught if w.category is layby.UnusedWarning)
    assert messages == [
        "<Fetch GET http://a.example/?token=*** not started> was never used",
        "<Gather of 1, join 'all', not started> was never used",
    ]


def test_one_that_was_used_does_not(gateway: Gateway) -> None:
    gateway.results = [[response(), None]]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        layby.gather(get("a"), get("b"), join="any").result()
        gc.collect()
    assert caught == []


def test_result_does_not_block_an_event_loop(gateway: Gateway) -> None:
    async def main() -> None:
        with pytest.raises(layby.NotInASlot):
            get().result()

    asyncio.run(main())
    assert gateway.plans == []


def test_repr_shows_the_state(gateway: Gateway) -> None:
    gateway.results = [[response()]]
    fetch = get()
    assert repr(fetch) == "<Fetch GET http://a.example/ not started>"
    fetch.result()
    assert repr(fetch) == "<Fetch GET http://a.example/ ended>"


@pytest.mark.parametrize("name", ["post", "put", "patch", "delete"])
def test_methods_with_a_body(gateway: Gateway, name: str) -> None:
    gateway.results = [[response()]]
    getattr(layby, name)("http://a.example/", json={"a": 1}).result()
    [thing] = gateway.plans[0]["gather"]
    assert thing["fetch"]["method"] == name.upper()
    assert gateway.bodies == [b'{"a":1}']


@pytest.mark.parametrize("name", ["get", "head"])
def test_methods_without_a_body(gateway: Gateway, name: str) -> None:
    gateway.results = [[response()]]
    getattr(layby, name)("http://a.example/", params={"a": 1}).result()
    [thing] = gateway.plans[0]["gather"]
    assert (thing["fetch"]["method"], thing["fetch"]["url"]) == (
        name.upper(),
        "http://a.example/?a=1",
    )


def test_drive_answers_foreign_awaitables_with_an_error() -> None:
    async def waits() -> str:
        try:
            await asyncio.sleep(0)
        except layby.Error as error:
            return str(error)
        return "no error"

    assert "asyncio cannot be used in a slot" in drive(waits())


async def sleeps_by_asyncio() -> None:
    await asyncio.sleep(1)


async def gathers_by_asyncio() -> None:
    # As for the others, but by the loop that there would be to get, and on a thread with none.
    await asyncio.gather(asyncio.Event().wait())


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
@pytest.mark.parametrize("waits", [sleeps_by_asyncio, gathers_by_asyncio])
def test_drive_explains_a_missing_loop(waits: Any) -> None:
    with ThreadPoolExecutor(1) as pool:
        error = pool.submit(drive, waits()).exception()
    assert isinstance(error, RuntimeError)
    [note] = error.__notes__
    assert "asyncio cannot be used in a slot" in note
    assert "layby.gather" in note
