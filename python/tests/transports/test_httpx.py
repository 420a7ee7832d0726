"""httpx and httpx2: clients and asynchronous clients, unchanged to their users."""

from __future__ import annotations

import asyncio
import gzip
import importlib
import io
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import stripe
from gateway import Gateway, failure
from origin import Origin, Reply, json_reply

import layby


@pytest.fixture(params=["httpx", "httpx2"])
def library(request: pytest.FixtureRequest) -> Any:
    return importlib.import_module(request.param)


@pytest.fixture(params=["transport", "patch"])
def options(request: pytest.FixtureRequest, library: Any) -> Callable[..., dict[str, Any]]:
    """What a client is made with: our transport, or nothing in a patched process."""
    if request.param == "patch":
        request.getfixturevalue("patched")
        return lambda **of_transport: of_transport
    ours = importlib.import_module(f"layby.{library.__name__}")
    return lambda **of_transport: {"transport": ours.Transport(**of_transport)}


def test_a_request_is_a_fetch_and_its_response_is_exact(
    gateway: Gateway, origin: Origin, library: Any, options: Any
) -> None:
    cookies = (("Set-Cookie", "a=1; Path=/"), ("Set-Cookie", "b=2; Path=/"))
    origin.on("/quote", json_reply(b'{"price": "4.90"}', 201, *cookies, ("X-Many", "1")))

    def view() -> Any:
        with library.Client(**options(), headers={"X-Token": "t"}) as client:
            return client.post(f"{origin.url}/quote", params={"zip": "1"}, json={"a": 1})

    response = gateway.run(view)
    assert (response.status_code, response.reason_phrase) == (201, "Created")
    assert response.json() == {"price": "4.90"}
    assert str(response.url) == f"{origin.url}/quote?zip=1"
    assert response.headers["x-many"] == "1"
    assert response.headers.get_list("set-cookie") == ["a=1; Path=/", "b=2; Path=/"]
    assert dict(response.cookies) == {"a": "1", "b": "2"}
    assert response.elapsed.total_seconds() > 0
    [seen] = origin.seen
    assert seen.by_gateway
    assert (seen.method, seen.target, seen.body) == ("POST", "/quote?zip=1", b'{"a":1}')
    assert seen.header("x-token") == "t"
    assert seen.header("user-agent") == f"python-{library.__name__}/{library.__version__}"
    assert gateway.kinds == ["HOLD"]


def test_an_async_client_parks_in_a_slot(
    gateway: Gateway, origin: Origin, library: Any, options: Any
) -> None:
    origin.on("/old", Reply(307, (("Location", "/new"),)))
    origin.on("/new", Reply(200, (("Content-Encoding", "gzip"),), gzip.compress(b"a\nb\n")))

    async def view() -> tuple[Any, list[str]]:
        async with library.AsyncClient(**options(), follow_redirects=True) as client:
            response = await client.post(f"{origin.url}/old", content=b"body")
            async with client.stream("GET", f"{origin.url}/new") as stream:
                lines = [line async for line in stream.aiter_lines()]
        return response, lines

    response, lines = gateway.run_async(view)
    assert response.text == "a\nb\n"
    assert [r.status_code for r in response.history] == [307]
    assert lines == ["a", "b"]
    assert gateway.kinds == ["PARK"] * 3
    assert [seen.body for seen in origin.seen] == [b"body", b"body", b""]


def test_coded_bodies_and_streams_are_read_in_every_way(
    gateway: Gateway, origin: Origin, library: Any, options: Any
) -> None:
    coded = gzip.compress(b"one\ntwo\n")
    origin.on("/", Reply(200, (("Content-Encoding", "gzip"),), coded))

    def view() -> tuple[Any, ...]:
        with library.Client(**options()) as client:
            whole = client.get(origin.url).content
            with client.stream("GET", origin.url) as response:
                lines = list(response.iter_lines())
            with client.stream("GET", origin.url) as response:
                raw = b"".join(response.iter_raw())
            with client.stream("GET", origin.url) as response:
                chunks = list(response.iter_bytes(3))
            return whole, lines, raw, chunks

    assert gateway.run(view) == (
        b"one\ntwo\n",
        ["one", "two"],
        coded,
        [b"one", b"\ntw", b"o\n"],
    )


@pytest.mark.parametrize(
    ("kind", "phase", "error"),
    [
        ("connect", "connect", "ConnectError"),
        ("connect", "dns", "ConnectError"),
        ("refused", "dns", "ConnectError"),
        ("timeout", "connect", "ConnectTimeout"),
        ("timeout", "send", "WriteTimeout"),
        ("timeout", "head", "ReadTimeout"),
        ("timeout", "body", "ReadTimeout"),
        ("failed", "head", "RemoteProtocolError"),
        ("failed", "send", "WriteError"),
        ("failed", "url", "UnsupportedProtocol"),
        ("too_large", "body", "ReadError"),
    ],
)
def test_failures_are_the_exceptions_of_the_library(
    gateway: Gateway, library: Any, options: Any, kind: str, phase: str, error: str
) -> None:
    gateway.instead = failure(kind, phase, "the gateway's words")

    def view() -> None:
        with library.Client(**options()) as client:
            client.post("http://shop.example/", content=b"x")

    async def async_view() -> None:
        async with library.AsyncClient(**options()) as client:
            await client.post("http://shop.example/", content=b"x")

    for run, of in ((gateway.run, view), (gateway.run_async, async_view)):
        with pytest.raises(getattr(library, error), match="the gateway's words") as raised:
            run(of)
        assert type(raised.value).__name__ == error
        assert str(raised.value.request.url) == "http://shop.example/"
    assert len(gateway.fetches) == 2


@pytest.mark.parametrize(
    ("timeout", "expected"),
    [(None, None), (3, 6), ({"timeout": 5, "connect": 1}, 6), ({"timeout": None, "read": 2}, 2)],
)
def test_timeouts_are_one_for_the_fetch(
    gateway: Gateway,
    origin: Origin,
    library: Any,
    options: Any,
    timeout: Any,
    expected: float | None,
) -> None:
    if isinstance(timeout, dict):
        timeout = library.Timeout(**timeout)

    def view() -> None:
        with library.Client(**options(), timeout=timeout) as client:
            client.get(origin.url)

    gateway.run(view)
    assert gateway.fetches[0].get("timeout") == expected


def test_a_transports_retries_are_made(gateway: Gateway, library: Any, options: Any) -> None:
    gateway.instead = failure("connect", "connect")
    ours = importlib.import_module(f"layby.{library.__name__}")

    async def view() -> None:
        async with library.AsyncClient(transport=ours.Transport(retries=2)) as client:
            await client.get("http://shop.example/")

    with pytest.raises(library.ConnectError):
        gateway.run_async(view)
    assert len(gateway.fetches) == 3
    assert gateway.kinds == ["PARK"] * 5  # with a pause before each attempt after the first
    gateway.instead = failure("timeout", "head")
    with pytest.raises(library.ReadTimeout):
        gateway.run_async(view)
    assert len(gateway.fetches) == 4


def generator() -> Iterator[bytes]:
    yield b"from a "
    yield b"generator"


BODIES: dict[str, Callable[[], dict[str, Any]]] = {
    "a generator": lambda: {"content": generator()},
    "a file": lambda: {"content": io.BytesIO(b"from a file")},
    "a multipart form": lambda: {"files": {"photo": b"bytes"}},
    "another host": lambda: {"headers": {"Host": "other.example"}},
}


@pytest.mark.parametrize("what", BODIES)
def test_what_the_gateway_cannot_do_is_a_real_call(
    gateway: Gateway,
    origin: Origin,
    library: Any,
    options: Any,
    what: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    origin.on("/", Reply(200, (), b"ok"))

    def view() -> str:
        with library.Client(**options()) as client:
            return str(client.post(origin.url, **BODIES[what]()).text)

    assert gateway.run(view) == "ok"
    assert gateway.fetches == []
    assert [seen.by_gateway for seen in origin.seen] == [False]
    [source] = gateway.real_calls
    assert "test_httpx.py:" in source
    [record] = [r for r in caplog.records if r.name == "layby"]
    assert record.message.startswith(source)


def test_an_async_client_in_a_slot_makes_real_calls_without_a_loop(
    gateway: Gateway, origin: Origin, library: Any, options: Any
) -> None:
    origin.on("/", Reply(200, (), b"ok"))

    async def view() -> str:
        async with library.AsyncClient(**options()) as client:
            return str((await client.post(origin.url, files={"photo": b"bytes"})).text)

    async def endless() -> AsyncIterator[bytes]:
        yield b"x"

    async def hopeless_view() -> None:
        async with library.AsyncClient(**options()) as client:
            await client.post(origin.url, content=endless())

    assert gateway.run_async(view) == "ok"
    assert gateway.fetches == []
    assert len(gateway.real_calls) == 1
    with pytest.raises(layby.Error, match=r"layby\.io"):
        gateway.run_async(hopeless_view)


@pytest.mark.parametrize(
    "of_transport",
    [
        {"http2": True},
        {"proxy": "http://127.0.0.1:1"},
        {"local_address": "127.0.0.1"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_of_ones_own_are_real_calls(
    gateway: Gateway, origin: Origin, library: Any, patched: None, of_transport: Any
) -> None:
    origin.on("/", Reply(200, (), b"ok"))
    ours = importlib.import_module(f"layby.{library.__name__}")

    def view(transport: Any) -> Any:
        with library.Client(transport=transport) as client:
            try:
                return client.get(origin.url).text
            except library.TransportError:
                return "ok"  # There is no such proxy or socket.

    for kind in (ours.Transport, library.HTTPTransport):
        transport = kind(**of_transport)
        assert gateway.run(lambda transport=transport: view(transport)) == "ok"
    assert gateway.fetches == []
    assert len(gateway.real_calls) == 2


@pytest.mark.parametrize(
    ("verify", "by_gateway"),
    [(False, False), (ssl.create_default_context(), False), (stripe.ca_bundle_path, True)],
    ids=["False", "context", "public"],
)
@pytest.mark.filterwarnings("ignore:.*verify=<str>.*:DeprecationWarning")
def test_only_public_certificates_are_for_the_gateway(
    gateway: Gateway, library: Any, patched: None, verify: Any, by_gateway: bool
) -> None:
    gateway.instead = failure("connect", "connect")
    ours = importlib.import_module(f"layby.{library.__name__}")

    def view(transport: Any) -> None:
        with library.Client(transport=transport) as client, pytest.raises(library.ConnectError):
            client.get("https://127.0.0.1:1/")

    for kind in (ours.Transport, library.HTTPTransport):
        transport = kind(verify=verify)
        gateway.run(lambda transport=transport: view(transport))
    assert len(gateway.fetches) == (2 if by_gateway else 0)
    assert len(gateway.real_calls) == (0 if by_gateway else 2)


def test_on_an_event_loop_and_on_helper_threads_calls_are_real(
    gateway: Gateway, origin: Origin, library: Any, options: Any
) -> None:
    origin.on("/", Reply(200, (), b"ok"))

    async def ask() -> str:
        async with library.AsyncClient(**options()) as client:
            return str((await client.get(origin.url)).text)

    def threaded() -> str:
        with library.Client(**options()) as client, ThreadPoolExecutor(1) as pool:
            return str(pool.submit(client.get, origin.url).result().text)

    assert asyncio.run(ask()) == "ok"
    assert gateway.run(lambda: asyncio.run(ask())) == "ok"
    assert gateway.run(threaded) == "ok"
    assert gateway.fetches == []
    assert [seen.by_gateway for seen in origin.seen] == [False] * 3


def test_a_client_made_before_the_patch_makes_real_calls(
    gateway: Gateway, origin: Origin, library: Any, caplog: pytest.LogCaptureFixture
) -> None:
    origin.on("/", Reply(200, (), b"ok"))
    with library.Client() as client:
        layby.patch()
        try:
            assert gateway.run(lambda: client.get(origin.url)).text == "ok"
        finally:
            layby.unpatch()
    assert gateway.fetches == []
    assert "made before layby.patch()" in caplog.text


def test_an_async_client_made_before_the_patch_says_so_without_a_loop(
    gateway: Gateway, library: Any
) -> None:
    client = library.AsyncClient(verify=False)
    layby.patch()
    try:
        with pytest.raises(layby.Error, match=r"call layby\.patch\(\) earlier"):
            gateway.run_async(lambda: client.get("http://shop.example/"))
    finally:
        layby.unpatch()
    assert gateway.fetches == []


def test_without_the_patch_nothing_is_patched(library: Any) -> None:
    before = library.HTTPTransport.handle_request, library.HTTPTransport.__init__
    layby.patch()
    assert library.HTTPTransport.handle_request is not before[0]
    layby.unpatch()
    assert (library.HTTPTransport.handle_request, library.HTTPTransport.__init__) == before
