"""What requests that share a thread must not see, or do to, each other."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fakegateway import Link
from stories import Start, app, park, resume, text

import layby
from layby import _locks, _stacks
from layby._worker import StartError, choose_mode

NAMES = ("shop_state.named",)


class Named(threading.local):
    """With state that every thread begins with."""

    def __init__(self) -> None:
        self.history: list[str] = []


@pytest.fixture
def shop() -> Iterator[Any]:
    module: Any = types.ModuleType("shop_state")
    module.named, module.unnamed = Named(), threading.local()
    sys.modules[module.__name__] = module
    yield module
    del sys.modules[module.__name__]


def interleave(slot: Any, count: int) -> list[str]:
    """Parks so many requests, and lets them go on in the same order; their answers."""
    for request in range(1, count + 1):
        slot.request(request, f"/{request}")
        park(slot, request)
    answers = []
    for request in range(1, count + 1):
        resume(slot, request)
        answers.append(text(slot))
    return answers


def test_named_thread_locals_of_20_requests_are_their_own(start: Start, shop: Any) -> None:
    def view(environ: dict[str, Any]) -> bytes:
        assert shop.named.history == []
        assert not hasattr(shop.named, "user")
        shop.named.user = environ["PATH_INFO"]
        shop.named.history.append(environ["PATH_INFO"])
        layby.sleep(1).result()
        return f"{shop.named.user} {shop.named.history}".encode()

    [slot] = start(app(view), thread_locals=NAMES)
    assert interleave(slot, 20) == [f"/{n} ['/{n}']" for n in range(1, 21)]
    # Nothing is left for the next request either: the view's assertions say so.
    assert interleave(slot, 1) == ["/1 ['/1']"]


def keeps_user(shop: Any) -> Callable[[dict[str, Any]], bytes]:
    def view(environ: dict[str, Any]) -> bytes:
        shop.unnamed.user = environ["PATH_INFO"]
        try:
            layby.sleep(1).result()
        except layby.ParkRefused as error:
            return str(error).encode()
        return str(shop.unnamed.user).encode()

    return view


def test_without_a_name_they_would_not_be_and_that_is_reported_in_debug(
    start: Start, shop: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("LAYBY_DEBUG", "1")
    [slot] = start(app(keeps_user(shop)), thread_locals=NAMES)
    # This is why: everybody reads the value of the last one.
    assert interleave(slot, 20) == ["/20"] * 20
    assert caplog.text.count("thread-local shop_state.unnamed holds state of a request") == 1


def test_without_a_name_they_do_not_park_in_strict_mode(
    start: Start, shop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAYBY_STRICT", "1")
    [slot] = start(app(keeps_user(shop)), thread_locals=NAMES)
    slot.request(1)
    assert "shop_state.unnamed holds state of the request" in text(slot)


@pytest.fixture
def watched() -> Iterator[None]:
    original = threading.RLock
    _locks.watch()
    yield
    threading.RLock = original  # type: ignore[misc]
    _locks._made = None
    _locks._reported.clear()


def holds_a_lock(make: Callable[[], Any]) -> Callable[[dict[str, Any]], bytes]:
    lock = make()

    def view(environ: dict[str, Any]) -> bytes:
        with lock:
            pass
        layby.sleep(1).result()
        with lock:
            try:
                layby.sleep(1).result()
            except layby.ParkRefused as error:
                return str(error).encode()
        return b"parked"

    return view


@pytest.mark.usefixtures("watched")
def test_an_rlock_over_a_park_is_reported_in_debug(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    [slot] = start(app(holds_a_lock(threading.RLock)))
    slot.request(1)
    park(slot, 1)
    assert "RLock" not in caplog.text  # it is not held there
    resume(slot, 1)
    park(slot, 1, 1)
    (record,) = [record for record in caplog.records if "RLock" in record.message]
    assert "test_guards.py" in record.message.partition("parks while it holds an RLock made at")[0]
    assert "test_guards.py" in record.message.partition("parks while it holds an RLock made at")[2]
    resume(slot, 1, 2)
    assert text(slot) == "parked"


@pytest.mark.usefixtures("watched")
def test_an_rlock_over_a_park_is_refused_in_strict_mode(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAYBY_STRICT", "1")
    [slot] = start(app(holds_a_lock(threading.RLock)))
    slot.request(1)
    park(slot, 1)
    resume(slot, 1)
    assert "cannot park here: it holds an RLock made at" in text(slot)


def test_without_the_watch_an_rlock_is_the_plain_one() -> None:
    assert "layby" not in getattr(threading.RLock, "__module__", "")
    assert _locks.held() == []


LOCKED = """
import threading, layby

lock = threading.Lock()

def application(environ, start_response):
    if environ["PATH_INFO"] == "/parks":
        parks_with_the_lock()
    elif environ["PATH_INFO"] == "/waits":
        waits_for_the_lock()
    else:
        layby.sleep(1).result()
    start_response("200 OK", [])
    return [b"done"]

def parks_with_the_lock():
    with lock:
        layby.sleep(1).result()

def waits_for_the_lock():
    with lock:
        pass
"""

BUSY = """
import threading

def application(environ, start_response):
    threading.Event().wait(60)
"""


class Told:
    """A worker of a module that is written for it, and what it logs."""

    def __init__(self, link: Link, folder: Path, source: str, *options: str) -> None:
        (folder / "told.py").write_text(source)
        self.text = ""
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "layby", "told", f"--link=unix:{link.path}", *options],
            cwd=folder,
            stderr=subprocess.PIPE,
            text=True,
        )
        # Ends a wait for words that never come.
        self._timer = threading.Timer(30, self.popen.kill)
        self._timer.start()

    def wait_for(self, *words: str) -> str:
        assert self.popen.stderr is not None
        while not all(word in self.text for word in words):
            line = self.popen.stderr.readline()
            assert line, self.text
            self.text += line
        return self.text

    def end(self) -> None:
        self._timer.cancel()
        self.popen.kill()
        self.popen.communicate()


@pytest.fixture
def worker(link: Link, tmp_path: Path) -> Iterator[Callable[..., Told]]:
    started: list[Told] = []

    def start(*arguments: str) -> Told:
        started.append(Told(link, tmp_path, *arguments))
        return started[-1]

    yield start
    for each in started:
        each.end()


def test_a_lock_over_a_park_is_told_with_both_stacks(
    link: Link, worker: Callable[..., Told]
) -> None:
    told = worker(LOCKED, "--mode=greenlet")
    control, hello = link.welcome()
    assert hello["mode"] == "greenlet"
    slot = link.grant(control, 3)
    for request, path in ((1, "/parks"), (2, "/other"), (3, "/other")):
        slot.request(request, path)
        park(slot, request)
    slot.request(4, "/waits")
    # The slot is stuck: the request that holds the lock has to resume on it.
    resume(slot, 1)
    assert slot.quiet()
    control.send("STACK", aux=3, head=b"a resume waits for it")
    log = told.wait_for(
        "parked on it, 2 requests:", "parked on it, 1 request:", "in parks_with_the_lock"
    )
    assert "slot 3: a resume waits for it" in log
    running, first, second = log.partition("its thread:")[2].split("parked on it, ")
    assert "in waits_for_the_lock" in running
    assert "in parks_with_the_lock" not in running + first
    assert "in parks_with_the_lock" in second


def test_a_busy_slot_is_told_in_every_mode(link: Link, worker: Callable[..., Told]) -> None:
    told = worker(BUSY)
    control, _ = link.welcome()
    slot = link.grant(control, 0)
    slot.request(1)
    assert slot.quiet()
    # A slot that is not there is nothing to tell of.
    control.send("STACK", aux=7, head=b"nobody")
    control.send("STACK", aux=0, head=b"busy for long")
    log = told.wait_for("slot 0: busy for long", "in application", "Event().wait(60)")
    assert "nobody" not in log


def functions(stack: list[dict[str, Any]]) -> list[str]:
    assert all(set(call) == {"file", "line", "function"} for call in stack)
    return [call["function"] for call in stack]


def test_who_asks_is_told_the_stacks_and_the_log_is_not(
    link: Link, worker: Callable[..., Told]
) -> None:
    told = worker(LOCKED, "--mode=greenlet")
    control, hello = link.welcome()
    assert hello["stacks"] is True
    slot = link.grant(control, 3)
    for request, path in ((1, "/parks"), (2, "/other"), (3, "/other")):
        slot.request(request, path)
        park(slot, request)
    slot.request(4, "/waits")
    resume(slot, 1)
    assert slot.quiet()
    control.send("STACK", aux=3, request=7)
    frame = control.expect("TOLD")
    assert (frame.request, frame.aux) == (7, 3)
    stacks = json.loads(frame.head)
    assert functions(stacks["thread"])[-1] == "waits_for_the_lock"
    parked = {each["requests"]: functions(each["stack"]) for each in stacks["parked"]}
    assert "parks_with_the_lock" in parked[1]
    assert "parks_with_the_lock" not in parked[2]
    # A slot that is not there has no thread, and whoever asked is told so.
    control.send("STACK", aux=9, request=8)
    assert json.loads(control.expect("TOLD").head) == {"thread": None, "parked": []}
    # The log has what the gateway asks for by itself, and nothing of the rest.
    control.send("STACK", aux=3, head=b"a resume waits for it")
    assert told.wait_for("slot 3: a resume waits for it").count("slot 3:") == 1


def test_a_deep_stack_is_told_from_its_inner_end() -> None:
    def dive(depth: int) -> bytes:
        if depth:
            return dive(depth - 1)
        return _stacks.tell(threading.get_ident(), [])

    stack = json.loads(dive(300))["thread"]
    assert len(stack) == 200
    assert functions(stack)[-1] == "tell"
    assert functions(stack)[0].endswith("dive")


def test_without_greenlet_the_worker_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "greenlet" else found(name)
    )
    with pytest.raises(StartError, match=r"pip install 'layby\[greenlet\]'"):
        choose_mode(lambda environ, start_response: [], "shop", "greenlet")


def test_a_coroutine_is_no_application_for_it() -> None:
    async def application(environ: dict[str, Any]) -> None: ...

    with pytest.raises(StartError, match="mode greenlet needs a WSGI application"):
        choose_mode(application, "shop", "greenlet")
