"""requests, urllib3 and httpx, unchanged, below synchronous code: they park."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import Any

import httpx
import pytest
import requests
import urllib3
from fakegateway import Connection, response
from stories import Start, app, park, text

import layby
from layby import _job


@pytest.fixture
def patched() -> Iterator[None]:
    layby.patch()
    yield
    layby.unpatch()


CLIENTS: dict[str, Callable[[str], str]] = {
    "requests": lambda url: str(requests.get(url, timeout=5).json()),
    "session": lambda url: str(requests.Session().get(url, timeout=5).json()),
    "urllib3": lambda url: str(urllib3.PoolManager().request("GET", url).json()),
    "httpx": lambda url: str(httpx.get(url).json()),
}


def go_on(slot: Connection, request: int, epoch: int, body: bytes, **changes: Any) -> None:
    headers = [["Content-Type", "application/json"]]
    entry = response(body, **{"headers": headers, **changes})
    slot.results("RESUME", request, epoch, entry, body=body)


@pytest.mark.usefixtures("patched")
@pytest.mark.parametrize("client", CLIENTS)
def test_a_client_library_parks_wherever_it_is_called(start: Start, client: str) -> None:
    def view(environ: dict[str, Any]) -> bytes:
        return f"{environ['PATH_INFO']} {CLIENTS[client]('http://a.example/x')}".encode()

    [slot] = start(app(view))
    for request in (1, 2, 3):
        slot.request(request, f"/{request}")
        (thing,) = park(slot, request)["gather"]
        assert thing["fetch"]["url"] == "http://a.example/x"
    for request in (3, 1, 2):
        go_on(slot, request, 1, b'{"n": %d}' % request)
        assert text(slot) == f"/{request} {{'n': {request}}}"


@pytest.mark.usefixtures("patched")
def test_every_redirect_is_a_park_and_failures_are_the_library_s_own(start: Start) -> None:
    def view(environ: dict[str, Any]) -> bytes:
        try:
            return requests.get("http://a.example/", timeout=5).content
        except requests.ConnectionError as error:
            return f"{type(error).__name__} {error.request.url}".encode()  # type: ignore[union-attr]

    [slot] = start(app(view))
    slot.request(1)
    park(slot, 1)
    moved = {"status": 302, "headers": [["Location", "http://b.example/"]]}
    go_on(slot, 1, 1, b"", **moved)
    (thing,) = park(slot, 1, 1)["gather"]
    assert thing["fetch"]["url"] == "http://b.example/"
    failed = {"error": "connect", "phase": "dns", "message": "m", "url": "", "seconds": 0.1}
    slot.results("RESUME", 1, 2, failed)
    assert text(slot) == "ConnectionError http://b.example/"


class Origin(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "4")
        self.end_headers()
        self.wfile.write(b"real")

    def log_message(self, *_: object) -> None:
        """Silence."""


@pytest.mark.usefixtures("patched")
def test_on_a_helper_thread_the_real_request_is_made(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_job, "in_worker", True)
    with HTTPServer(("127.0.0.1", 0), Origin) as server:
        serving = Thread(target=server.handle_request)
        serving.start()
        url = f"http://127.0.0.1:{server.server_port}/"

        def view(environ: dict[str, Any]) -> bytes:
            with ThreadPoolExecutor(1) as pool:
                return pool.submit(lambda: requests.get(url, timeout=5).content).result()

        [slot] = start(app(view))
        slot.request(1)
        assert text(slot) == "real"
        serving.join()
