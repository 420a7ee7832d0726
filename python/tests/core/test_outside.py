"""Without a gateway: the same results and errors, from a real local origin."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

import layby
from layby import _direct
from layby._drive import drive


class Origin:
    """An origin whose paths say what it does; it counts what reached it."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, dict[str, str], bytes]] = []
        # Set to let go those that wait at /stalls.
        self.released = threading.Event()
        origin = self

        class Handler(BaseHTTPRequestHandler):
            def serve(self) -> None:
                length = int(self.headers.get("content-length") or 0)
                body = self.rfile.read(length)
                headers = {name.lower(): value for name, value in self.headers.items()}
                origin.seen.append((self.command, self.path, headers, body))
                origin.answer(self, body)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = serve

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            request_queue_size = 128

            def handle_error(self, *_: Any) -> None:
                pass  # Clients that leave are a part of these tests.

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))
        self.thread.start()

    def answer(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        name, _, rest = handler.path.partition("?")[0].removeprefix("/").partition("/")
        content, headers, status = b"hello", {}, 200
        match name:
            case "status":
                status = int(rest)
            case "echo":
                content = body
            case "redirect":
                status, headers = int(rest), {"Location": "/hello"}
            case "away":
                status, headers = 302, {"Location": f"http://localhost:{self.server.server_port}/x"}
            case "round":
                status, headers = 302, {"Location": "/round"}
            case "stalls":
                self.released.wait(20)
            case "cut":
                handler.send_response(200)
                handler.send_header("Content-Length", "100")
                handler.end_headers()
                handler.wfile.write(b"only this")
                handler.close_connection = True
                return
            case "drips":
                handler.send_response(200)
                handler.end_headers()
                while not self.released.wait(0.05):
                    handler.wfile.write(b".")
                return
            case "garbage":
                handler.wfile.write(b"this is no HTTP\r\n\r\n")
                return
        handler.send_response(status)
        for header, value in headers.items():
            handler.send_header(header, value)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(content)

    def close(self) -> None:
        self.released.set()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def origin() -> Iterator[Origin]:
    origin = Origin()
    yield origin
    origin.close()


@pytest.fixture(params=["httpx", "http.client"], autouse=True)
def client(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(_direct, "_has_httpx", lambda: request.param == "httpx")
    return request.param


def test_a_fetch_is_made_in_place(origin: Origin) -> None:
    answer = layby.post(f"{origin.url}/echo?a=1", json={"a": 1}, headers={"X-A": "b"}).result()
    assert answer.raise_for_status().json() == {"a": 1}
    assert answer.url == f"{origin.url}/echo?a=1"
    assert answer.reason_phrase == "OK"
    assert answer.elapsed.total_seconds() > 0
    [(method, path, headers, body)] = origin.seen
    assert (method, path, body) == ("POST", "/echo?a=1", b'{"a":1}')
    agent = f"python-layby/{layby.__version__}"
    host = origin.url.removeprefix("http://")
    # These and no others: what a client adds by itself differs from what the gateway adds.
    assert {name: value for name, value in headers.items() if name != "connection"} == {
        "accept": "*/*",
        "user-agent": agent,
        "content-type": "application/json",
        "content-length": "7",
        "host": host,
        "x-a": "b",
    }


def test_await_works_on_an_event_loop_and_without_one(origin: Origin) -> None:
    async def view() -> bytes:
        return (await layby.get(f"{origin.url}/hello")).content

    assert asyncio.run(view()) == b"hello"
    assert drive(view()) == b"hello"


def test_a_head_has_no_body(origin: Origin) -> None:
    answer = layby.head(f"{origin.url}/hello").result()
    assert (answer.content, answer.headers["content-length"]) == (b"", "5")


def test_a_fan_out_runs_side_by_side(origin: Origin) -> None:
    async def view() -> Any:
        waiting = layby.gather(*(layby.get(f"{origin.url}/stalls/{n}") for n in range(8)))
        release = threading.Thread(target=release_when_all_are_there)
        release.start()
        results = await waiting
        release.join()
        return results

    def release_when_all_are_there() -> None:
        while len(origin.seen) < 8:
            time.sleep(0.005)
        origin.released.set()

    # Were they made one after the other, none but the first would ever arrive.
    assert [answer.content for answer in drive(view())] == [b"hello"] * 8


def test_redirects_are_left_alone_unless_asked_for(origin: Origin) -> None:
    answer = layby.get(f"{origin.url}/redirect/302").result()
    assert (answer.status_code, answer.headers["location"]) == (302, "/hello")
    assert answer.is_redirect
    answer = layby.get(f"{origin.url}/redirect/302", follow_redirects=True).result()
    assert (answer.status_code, answer.url) == (200, f"{origin.url}/hello")


@pytest.mark.parametrize(
    ("status", "method", "then", "body"),
    [
        (301, "POST", "GET", b""),
        (302, "POST", "GET", b""),
        (303, "PUT", "GET", b""),
        (307, "POST", "POST", b"abc"),
        (308, "PUT", "PUT", b"abc"),
    ],
)
def test_the_method_after_a_redirect(
    origin: Origin, status: int, method: str, then: str, body: bytes
) -> None:
    url = f"{origin.url}/redirect/{status}"
    layby.request(method, url, content=b"abc", follow_redirects=True).result()
    assert [(seen[0], seen[3]) for seen in origin.seen] == [(method, b"abc"), (then, body)]


def test_credentials_do_not_follow_a_redirect_to_another_origin(origin: Origin) -> None:
    layby.get(
        f"{origin.url}/away", headers={"Authorization": "Bearer t"}, follow_redirects=True
    ).result()
    assert "authorization" in origin.seen[0][2]
    assert "authorization" not in origin.seen[1][2]


def test_redirects_in_a_circle_fail(origin: Origin) -> None:
    with pytest.raises(layby.FetchError) as caught:
        layby.get(f"{origin.url}/round", follow_redirects=True).result()
    assert caught.value.phase == "redirect"
    assert len(origin.seen) == 21


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.mark.parametrize(
    ("url", "error", "phase"),
    [
        ("http://127.0.0.1:{port}/?token=secret", layby.ConnectError, "connect"),
        ("http://no-such-name.invalid/?token=secret", layby.ConnectError, "dns"),
        ("ftp://a.example/?token=secret", layby.FetchError, "url"),
        ("/relative?token=secret", layby.FetchError, "url"),
        ("http://a.example:port/?token=secret", layby.FetchError, "url"),
        ("http://[bad/?token=secret", layby.FetchError, "url"),
    ],
)
def test_what_cannot_be_reached(url: str, error: Any, phase: str) -> None:
    with pytest.raises(error) as caught:
        layby.get(url.format(port=free_port())).result()
    assert caught.value.phase == phase
    assert "secret" not in str(caught.value)
    assert "***" in caught.value.url


@pytest.mark.parametrize(("path", "phase"), [("cut", "body"), ("garbage", "head")])
def test_an_origin_that_fails(origin: Origin, path: str, phase: str) -> None:
    with pytest.raises(layby.FetchError) as caught:
        layby.get(f"{origin.url}/{path}").result()
    assert type(caught.value) is layby.FetchError
    assert caught.value.phase == phase


@pytest.mark.parametrize(("path", "phase"), [("stalls", "head"), ("drips", "body")])
def test_a_timeout_runs_to_the_last_byte(
    origin: Origin, client: str, path: str, phase: str
) -> None:
    begun = time.monotonic()
    with pytest.raises(layby.Timeout) as caught:
        layby.get(f"{origin.url}/{path}", timeout=0.3).result()
    assert time.monotonic() - begun < 2
    # httpx does not tell when it has connected.
    assert caught.value.phase in ({phase, "connect"} if client == "httpx" else {phase})


def test_the_timeout_of_a_gather_leaves_what_has_ended(origin: Origin) -> None:
    quick, slow = layby.get(f"{origin.url}/hello"), layby.get(f"{origin.url}/stalls")
    results = layby.gather(quick, slow, timeout=0.5, return_exceptions=True).result()
    assert results[0].content == b"hello"
    assert isinstance(results[1], layby.Timeout)
    assert results[1].phase == "join"
    assert results[1].url == f"{origin.url}/stalls"


def test_any_takes_the_first_to_end(origin: Origin) -> None:
    results = layby.gather(
        layby.get(f"{origin.url}/stalls"), layby.get(f"{origin.url}/status/500"), join="any"
    ).result()
    assert [r and r.status_code for r in results] == [None, 500]


def test_first_ok_passes_over_errors_and_failures(origin: Origin) -> None:
    results = layby.gather(
        layby.get(f"{origin.url}/status/500"),
        layby.get(f"http://127.0.0.1:{free_port()}/"),
        layby.get(f"{origin.url}/hello"),
        layby.get(f"{origin.url}/stalls"),
        join="first_ok",
    ).result()
    assert [r and r.status_code for r in results] == [None, None, 200, None]


def test_first_ok_does_not_take_a_sleep(origin: Origin) -> None:
    later = layby.gather(layby.sleep(0.1), layby.get(f"{origin.url}/hello"))
    results = layby.gather(layby.sleep(0.01), later, join="first_ok").result()
    assert results[0] is None
    assert results[1][1].content == b"hello"


def test_a_number_waits_for_so_many(origin: Origin) -> None:
    results = layby.gather(
        layby.get(f"{origin.url}/stalls"),
        layby.get(f"{origin.url}/hello"),
        layby.get(f"{origin.url}/status/404"),
        join=2,
    ).result()
    assert [r and r.status_code for r in results] == [None, 200, 404]


def test_a_sleep_sleeps() -> None:
    begun = time.monotonic()
    assert layby.sleep(0.1).result() == 0.1
    assert time.monotonic() - begun >= 0.1


def test_nested_gathers(origin: Origin) -> None:
    results = layby.gather(
        layby.gather(layby.get(f"{origin.url}/stalls"), layby.sleep(0.05), join="any"),
        layby.gather(
            layby.get(f"{origin.url}/status/500"), layby.get(f"{origin.url}/hello"), join="first_ok"
        ),
    ).result()
    assert results[0] == [None, 0.05]
    assert [r and r.status_code for r in results[1]] == [None, 200]


def test_more_fetches_than_threads(origin: Origin) -> None:
    fetches = [layby.post(f"{origin.url}/echo", content=b"%d" % n) for n in range(100)]
    results = layby.gather(*fetches).result()
    assert [answer.content for answer in results] == [b"%d" % n for n in range(100)]
