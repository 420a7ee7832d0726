"""The status page in a real browser, over a gateway under load."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from conftest import TO_THE_STUB, Starter
from support.browser import Browser
from support.checkout import Buying
from support.client import Connection
from support.gateway import Gateway
from support.postgres import Postgres
from support.program import until
from support.services import Services

CONFIGURATION = f"""
[slots]
count = 4

[workers]
processes = 2

[[route]]
path = "/lab"

{TO_THE_STUB}"""

# The path of somebody who means harm.
HOSTILE = "/%3Cscript%3Ewindow.harmed=1%3C/script%3E'&lt;img/src=x/onerror='window.harmed=1'&gt;"

# Every text on the page whose contrast to what is behind it is below what WCAG asks for.
FAINT = """
(() => {
  const channels = (color) => {
    const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => {
    const linear = [r, g, b].map((c) => {
      c /= 255;
      return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  };
  const behind = (element) => {
    for (let each = element; each; each = each.parentElement) {
      const color = channels(getComputedStyle(each).backgroundColor);
      if (color[3] === 255) return color;
    }
    return [255, 255, 255, 255];
  };
  const faint = [];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || !element.getClientRects().length) continue;
    if (element.closest("title, noscript")) continue;
    const [one, other] = [light(channels(getComputedStyle(element).color)), light(behind(element))];
    const contrast = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    if (contrast < 4.5) faint.push([texts.currentNode.data.trim(), contrast]);
  }
  return faint;
})()
"""


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    running = Browser(tmp_path / "chromium")
    yield running
    running.close()


@contextmanager
def load(gateway: Gateway, clients: int) -> Iterator[None]:
    """Clients that buy, on a thread of their own."""
    over = threading.Event()

    async def buy() -> None:
        buying = Buying(gateway, "page-", clients)
        await asyncio.to_thread(over.wait)
        await buying.end()
        # They are of this thread's event loop, which ends with it.
        await Connection.end_all()

    with ThreadPoolExecutor(1) as pool:
        bought = pool.submit(asyncio.run, buy())
        try:
            yield
        finally:
            over.set()
        bought.result()


@contextmanager
def asking(gateway: Gateway, path: str) -> Iterator[None]:
    """A request that nobody waits for."""
    with socket.create_connection(gateway.address) as client:
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        yield


def admin(gateway: Gateway, path: str, **headers: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", gateway.admin_port, timeout=30)
    try:
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def running(gateway: Gateway, path: str) -> int:
    """The slot that runs this path, once one does."""

    def found() -> list[int]:
        slots = gateway.status()["slots"]["list"]
        return [each["slot"] for each in slots if each["job"] and each["job"]["path"] == path]

    return int(until(f"no slot runs {path}", found, 20)[0])


def page(gateway: Gateway) -> str:
    return f"http://127.0.0.1:{gateway.admin_port}/"


def test_the_page_is_live_under_load_and_asks_nobody_else(
    start: Starter, stub: Services, browser: Browser
) -> None:
    stub.set(latency=300)
    gateway = start(CONFIGURATION)
    with asking(gateway, HOSTILE):
        until("it is not kept", lambda: gateway.status()["slow_requests"], 20)
    browser.open(page(gateway))
    board = "document.getElementById('board').innerText"
    assert HOSTILE in browser.run(board)
    with load(gateway, 8):
        shown = browser.wait("no requests are shown", board, lambda text: "/api/checkout" in text)
        assert "127.0.0.1" in shown
        assert "park" in shown
        browser.wait("it stands still", board, lambda text: text != shown)
        assert browser.run("document.getElementById('live').innerText").startswith("Live")
        # Lines have points, and the latest figure is on the page in words.
        browser.wait(
            "no line is drawn",
            "document.querySelector('path.line.first').getAttribute('d').length",
            lambda length: length > 30,
        )
        # Paused, it stays as it is.
        browser.run("document.querySelector('#live button').click()")
        still = browser.run(board)
        time.sleep(1.5)
        assert browser.run(board) == still
        browser.run("document.querySelector('#live button').click()")
        for width in (1280, 400):
            browser.size(width, 900)
            assert browser.run("document.documentElement.scrollWidth") <= width
        for scheme in ("light", "dark"):
            browser.scheme(scheme)
            assert browser.run(FAINT) == [], scheme
    assert browser.run("window.harmed") is None
    assert browser.complaints == []
    elsewhere = [url for url in browser.requests if not url.startswith((page(gateway), "about:"))]
    assert elsewhere == []
    gateway.end()
    browser.wait(
        "it does not say that nobody answers",
        "document.getElementById('live').innerText",
        lambda text: "No answer since" in text,
    )


def test_without_scripts_there_are_the_tables_and_all_has_a_name(
    start: Starter, stub: Services, browser: Browser
) -> None:
    stub.set(latency=300)
    gateway = start(CONFIGURATION)
    with load(gateway, 4):
        until("nothing was slow", lambda: gateway.status()["slow_requests"], 20)
        browser.scripts(run=False)
        browser.send("Page.navigate", url=page(gateway))

        def named(role: str) -> list[str]:
            nodes = browser.send("Accessibility.getFullAXTree")["nodes"]
            of_role = [node for node in nodes if node.get("role", {}).get("value") == role]
            return [node.get("name", {}).get("value", "") for node in of_role]

        browser.send("Accessibility.enable")
        tables = until("there are no tables", lambda: named("table"), 20)
        assert tables[0].startswith("What each slot runs now")
        assert all(named("table"))
        assert all(named("image"))
        assert all(named("region"))
        links = named("link")
        assert {f"Stack of slot {slot}" for slot in range(4)} < set(links)
        assert all(named("columnheader"))
        assert {"0", "1", "2", "3"} <= set(named("rowheader"))
    assert browser.complaints == []


def test_a_stack_is_asked_for_with_the_keyboard(
    start: Starter, stub: Services, browser: Browser
) -> None:
    gateway = start(CONFIGURATION)
    with asking(gateway, "/lab/stuck?seconds=60&secret=hush"):
        slot = running(gateway, "/lab/stuck")

        def asleep() -> bool:
            thread = admin(gateway, f"/api/slots/{slot}/stack")[1]["thread"]
            return bool(thread[-1]["function"] == "stuck")

        until("it does not sleep", asleep, 20)
        browser.open(page(gateway))
        browser.wait("it is not live", "document.querySelector('#live button') !== null")
        focused = "document.activeElement.textContent"
        for _ in range(20):
            browser.press("Tab")
            if browser.run(focused) == f"Stack of slot {slot}":
                break
        assert browser.run(focused) == f"Stack of slot {slot}"
        assert browser.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        # A page that is renewed under the reader leaves the focus where it is.
        time.sleep(1.5)
        assert browser.run(focused) == f"Stack of slot {slot}"
        browser.press("Enter")
        told = browser.wait(
            "no stack is shown",
            "document.getElementById('stack-told').innerText",
            lambda text: "innermost call first" in text,
        )
        innermost = told.split("innermost call first:")[1].split("\n")
        assert "views.py:" in told
        assert next(line for line in innermost if line.strip()).startswith("stuck")
        assert "hush" not in told
        assert "time.sleep" not in told
        assert browser.run("document.getElementById('stack').open") is True
        browser.press("Escape")
        browser.wait("it stays", "!document.getElementById('stack').open")
        assert browser.run(focused) == f"Stack of slot {slot}"
        assert browser.complaints == []


def test_stacks_are_told_of_what_blocks_and_not_of_what_holds_the_interpreter(
    start: Starter,
    postgres: Postgres,
) -> None:
    # Its worker is killed in the end, and the next test counts connections.
    postgres.give_up_queries_of_the_dead()
    gateway = start(CONFIGURATION)
    with asking(gateway, "/lab/stuck-query?seconds=60"):
        slot = running(gateway, "/lab/stuck-query")

        def in_its_query() -> bool:
            status, told = admin(gateway, f"/api/slots/{slot}/stack")
            return status == 200 and "stuck_query" in {each["function"] for each in told["thread"]}

        # A first request loads what it needs before it is there.
        until("its stack is another", in_its_query, 20)
        assert (
            admin(gateway, f"/api/slots/{slot}/stack", **{"Sec-Fetch-Site": "cross-site"})[0] == 403
        )
        idle = [each["slot"] for each in gateway.status()["slots"]["list"] if not each["job"]]
        status, told = admin(gateway, f"/api/slots/{idle[0]}/stack")
        assert (status, told["error"].partition(":")[0]) == (409, "the slot is idle")
        with asking(gateway, "/lab/held"):
            slot = running(gateway, "/lab/held")
            until(
                "it is not held", lambda: admin(gateway, f"/api/slots/{slot}/stack")[0] == 504, 20
            )
            began = time.monotonic()
            status, told = admin(gateway, f"/api/slots/{slot}/stack")
            assert time.monotonic() - began < 3
            assert status == 504
            assert "its interpreter is held" in told["error"]
            # It would not end by itself, nor let the gateway.
            for pid in gateway.worker_pids():
                os.kill(pid, signal.SIGKILL)
    # Asked by a person, it stands in nobody's log.
    assert "its thread:" not in gateway.log


def test_what_waits_where_is_told(start: Starter, stub: Services) -> None:
    stub.set(latency=300)
    gateway = start(CONFIGURATION)
    with load(gateway, 8):

        def parked() -> dict[str, Any] | None:
            waits_for = gateway.status()["parked"]["waits_for"]
            return next((each for each in waits_for if each["origin"] == "127.0.0.1"), None)

        seen = until("nobody waits for the services", parked, 20)
        assert seen["what"] == "origin"
        assert 1 <= seen["requests"] <= 8
        assert 0 <= seen["longest_seconds"] < 2

        def checked_out() -> dict[str, Any] | None:
            slow = gateway.status()["slow_requests"]
            return next((each for each in slow if each["path"] == "/api/checkout"), None)

        slow = until("no request was slow", checked_out, 20)
        assert slow["parks"] >= 1
        names = [phase["phase"] for phase in slow["phases"]]
        assert names[:4] == ["body", "queue", "run", "park"]
        assert names[-1] == "answer"
        parked_for = sum(each["seconds"] for each in slow["phases"] if each["phase"] == "park")
        assert 0.28 <= parked_for <= slow["seconds"]
        # One phase begins where the one before it ends.
        for before, after in zip(slow["phases"], slow["phases"][1:], strict=False):
            assert before["begins"] + before["seconds"] == pytest.approx(after["begins"], abs=1e-5)
        history = until(
            "there are no samples", lambda: gateway.status()["history"]["parked"][2:], 20
        )
        assert max(history) <= 8
    # The same clock: what the metrics sum up is what requests were told to have spent.
    spent = gateway.metric("layby_request_phase_seconds_sum", phase="park")
    parks = gateway.metric("layby_park_seconds_sum")
    assert spent == pytest.approx(parks, rel=0.05)
