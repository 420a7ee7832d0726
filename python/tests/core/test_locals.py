"""threading.local objects: what one request holds in them no other one sees."""

from __future__ import annotations

import sys
import threading
import types
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import Start
from test_coroutine import app, park

import layby
from layby._locals import ThreadLocals, UnknownLocal


class WithDefaults(threading.local):
    def __init__(self) -> None:
        self.stack: list[str] = []


@pytest.fixture
def shop() -> Iterator[Any]:
    """A module of an application, with thread-locals."""
    module: Any = types.ModuleType("shop_with_locals")
    module.current = threading.local()
    module.stacks = WithDefaults()
    module.unnamed = threading.local()
    sys.modules[module.__name__] = module
    yield module
    del sys.modules[module.__name__]


NAMES = ("shop_with_locals.current", "shop_with_locals.stacks")


def test_a_named_local_travels_with_its_request_and_no_other_sees_it(
    start: Start, shop: Any
) -> None:
    async def view(environ: dict[str, Any]) -> bytes:
        seen = getattr(shop.current, "user", None), list(shop.stacks.stack)
        if environ["PATH_INFO"] != "/looks":
            shop.current.user = environ["PATH_INFO"]
            shop.stacks.stack.append(environ["PATH_INFO"])
            await layby.sleep(1)
            seen = shop.current.user, list(shop.stacks.stack)
        return repr(seen).encode()

    one, two = start(app(view), mode="coroutine", slots=2, thread_locals=NAMES)
    one.request(1, "/ann")
    park(one, 1)
    # The next request on this thread finds them as on a new thread.
    one.request(2, "/looks")
    assert one.answer()[1] == b"(None, [])"
    two.request(3, "/bob")
    park(two, 3)
    two.results("RESUME", 1, 1, {"slept": 1.0})
    assert two.answer()[1] == b"('/ann', ['/ann'])"
    # Nor does it find what one left that answered.
    two.request(4, "/looks")
    assert two.answer()[1] == b"(None, [])"
    two.results("RESUME", 3, 1, {"slept": 1.0})
    assert two.answer()[1] == b"('/bob', ['/bob'])"


def test_a_request_that_had_nothing_finds_nothing_after_its_park(start: Start, shop: Any) -> None:
    async def view(environ: dict[str, Any]) -> bytes:
        if environ["PATH_INFO"] == "/sets":
            shop.current.user = "bob"
        await layby.sleep(1)
        return repr(getattr(shop.current, "user", None)).encode()

    [slot] = start(app(view), mode="coroutine", thread_locals=NAMES)
    slot.request(1, "/has-nothing")
    park(slot, 1)
    slot.request(2, "/sets")
    park(slot, 2)
    slot.results("RESUME", 1, 1, {"slept": 1.0})
    assert slot.answer()[1] == b"None"
    slot.results("RESUME", 2, 1, {"slept": 1.0})
    assert slot.answer()[1] == b"'bob'"


async def sets_unnamed(environ: dict[str, Any]) -> bytes:
    if environ["PATH_INFO"] == "/sets":
        sys.modules["shop_with_locals"].unnamed.request = environ
    try:
        await layby.sleep(1)
    except layby.ParkRefused as error:
        return str(error).encode()
    return b"parked"


def test_an_unnamed_one_that_holds_state_is_reported_once_in_debug(
    start: Start, shop: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("LAYBY_DEBUG", "1")
    [slot] = start(app(sets_unnamed), mode="coroutine", thread_locals=NAMES)
    slot.request(1, "/does-not")
    park(slot, 1)
    assert "thread-local" not in caplog.text
    for request in (2, 3):
        slot.request(request, "/sets")
        park(slot, request)
    assert caplog.text.count("thread-local shop_with_locals.unnamed holds state") == 1


def test_lazy_objects_are_left_as_they_are(
    start: Start, shop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Lazy:
        @property
        def __class__(self) -> Any:  # type: ignore[override]
            raise RuntimeError("cannot be made here")

    monkeypatch.setenv("LAYBY_DEBUG", "1")
    monkeypatch.setattr(shop, "lazy", Lazy(), raising=False)
    [slot] = start(app(sets_unnamed), mode="coroutine", thread_locals=NAMES)
    slot.request(1, "/sets")
    park(slot, 1)


def test_it_is_an_error_in_strict_mode(
    start: Start, shop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAYBY_STRICT", "1")
    [slot] = start(app(sets_unnamed), mode="coroutine", thread_locals=NAMES)
    for request in (1, 2):
        slot.request(request, "/sets")
        answer = slot.answer()[1]
        assert b"shop_with_locals.unnamed holds state of the request" in answer


def test_nothing_is_searched_for_otherwise(
    start: Start, shop: Any, caplog: pytest.LogCaptureFixture
) -> None:
    [slot] = start(app(sets_unnamed), mode="coroutine", thread_locals=NAMES)
    slot.request(1, "/sets")
    park(slot, 1)
    assert "thread-local" not in caplog.text


@pytest.mark.parametrize(
    "name", ["shop_with_locals.none", "no_such_module.x", "shop_with_locals.__name__", "plain"]
)
def test_a_name_of_nothing_is_an_error(shop: Any, name: str) -> None:
    with pytest.raises(UnknownLocal, match=name):
        ThreadLocals([name], watch=False)
