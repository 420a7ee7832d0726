"""requests and urllib3: unchanged to their users, and every request a fetch."""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests
import stripe
import urllib3
from gateway import Gateway, failure
from origin import Origin, Reply, json_reply

import layby
import layby.requests
import layby.urllib3


@pytest.fixture(params=["adapter", "patch"])
def session(request: pytest.FixtureRequest) -> Any:
    """A session by the gateway: with the adapter mounted, or with the process patched."""
    with requests.Session() as session:
        if request.param == "adapter":
            session.mount("http://", layby.requests.Adapter())
            session.mount("https://", layby.requests.Adapter())
        else:
            request.getfixturevalue("patched")
        yield session


def test_a_request_is_a_fetch_and_its_response_is_exact(
    gateway: Gateway, origin: Origin, session: requests.Session
) -> None:
    cookies = (("Set-Cookie", "a=1; Path=/"), ("Set-Cookie", "b=2; Path=/"))
    origin.on("/quote", json_reply(b'{"price": "4.90"}', 201, *cookies, ("X-Many", "1")))
    response = gateway.run(
        lambda: session.post(f"{origin.url}/quote?zip=1", json={"a": 1}, headers={"X-Token": "t"})
    )
    assert response.status_code == 201
    assert response.reason == "Created"
    assert response.json() == {"price": "4.90"}
    assert response.url == f"{origin.url}/quote?zip=1"
    assert response.headers["X-Many"] == "1"
    assert response.elapsed.total_seconds() > 0
    assert session.cookies.get_dict() == {"a": "1", "b": "2"}
    [seen] = origin.seen
    assert seen.by_gateway
    assert (seen.method, seen.target, seen.body) == ("POST", "/quote?zip=1", b'{"a": 1}')
    assert seen.header("x-token") == "t"
    assert seen.header("content-type") == "application/json"
    assert seen.header("user-agent") == requests.utils.default_user_agent()
    assert gateway.kinds == ["HOLD"]


def test_a_coded_body_is_decoded_once_by_the_library(
    gateway: Gateway, origin: Origin, session: requests.Session
) -> None:
    coded = Reply(200, (("Content-Encoding", "gzip"),), gzip.compress(b"hello " * 100))
    origin.on("/", coded)
    response = gateway.run(lambda: session.get(origin.url))
    assert response.content == b"hello " * 100
    assert response.headers["Content-Encoding"] == "gzip"
    raw = gateway.run(lambda: session.get(origin.url, stream=True).raw.read(decode_content=False))
    assert raw == coded.body


def test_redirects_are_one_fetch_each_and_followed_by_the_library(
    gateway: Gateway, origin: Origin, session: requests.Session
) -> None:
    origin.on("/old", Reply(302, (("Location", "/new"), ("Set-Cookie", "seen=1"))))
    origin.on("/new", Reply(200, (), b"here"))
    response = gateway.run(lambda: session.post(f"{origin.url}/old", data={"a": "b"}))
    assert response.text == "here"
    assert [r.status_code for r in response.history] == [302]
    assert [(fetch["method"], fetch.get("follow")) for fetch in gateway.fetches] == [
        ("POST", None),
        ("GET", None),
    ]
    assert origin.seen[1].header("cookie") == "seen=1"


def test_a_head_has_its_length_and_no_body(
    gateway: Gateway, origin: Origin, session: requests.Session
) -> None:
    origin.on("/", Reply(200, (), b"hello"))
    response = gateway.run(lambda: session.head(origin.url))
    assert (response.headers["Content-Length"], response.content) == ("5", b"")


def test_streams_can_be_read_in_every_way(
    gateway: Gateway, origin: Origin, session: requests.Session
) -> None:
    origin.on("/lines", Reply(200, (), b"one\ntwo\nthree"))

    def read() -> tuple[Any, ...]:
        url = f"{origin.url}/lines"
        with session.get(url, stream=True) as response:
            lines = list(response.iter_lines())
        with session.get(url, stream=True) as response:
            chunks = list(response.iter_content(4))
        with session.get(url, stream=True) as response:
            raw = response.raw.read(3)
        return lines, chunks, raw

    assert gateway.run(read) == (
        [b"one", b"two", b"three"],
        [b"one\n", b"two\n", b"thre", b"e"],
        b"one",
    )
    assert len(gateway.fetches) == 3


@pytest.mark.parametrize(
    ("kind", "phase", "error"),
    [
        ("connect", "connect", requests.ConnectionError),
        ("connect", "dns", requests.ConnectionError),
        ("refused", "dns", requests.ConnectionError),
        ("timeout", "connect", requests.ConnectTimeout),
        ("timeout", "head", requests.ReadTimeout),
        ("failed", "head", requests.ConnectionError),
        ("too_large", "body", requests.ConnectionError),
    ],
)
def test_failures_are_the_exceptions_of_requests(
    gateway: Gateway, session: requests.Session, kind: str, phase: str, error: type[Exception]
) -> None:
    gateway.instead = failure(kind, phase, "the gateway's words")
    with pytest.raises(error, match="the gateway's words") as raised:
        gateway.run(lambda: session.post("http://shop.example/", data=b"x"))
    assert type(raised.value) is error
    assert len(gateway.fetches) == 1


def test_a_bad_certificate_is_an_ssl_error(gateway: Gateway, session: requests.Session) -> None:
    gateway.instead = failure("connect", "connect", "invalid peer certificate: UnknownIssuer")
    with pytest.raises(requests.exceptions.SSLError, match="UnknownIssuer"):
        gateway.run(lambda: session.get("https://shop.example/"))
    assert gateway.fetches[0]["url"] == "https://shop.example/"


@pytest.mark.parametrize(
    ("timeout", "expected"),
    [(None, None), (3, 6), ((1, 2.5), 3.5), ((None, 4), 4), ((2, None), None)],
)
def test_both_timeouts_are_one_for_the_fetch(
    gateway: Gateway,
    origin: Origin,
    session: requests.Session,
    timeout: Any,
    expected: float | None,
) -> None:
    gateway.run(lambda: session.get(origin.url, timeout=timeout))
    assert gateway.fetches[0].get("timeout") == expected


def test_retries_are_the_adapters_own(gateway: Gateway, origin: Origin) -> None:
    origin.on("/", Reply(503), Reply(503), Reply(200, (), b"at last"))
    retries = urllib3.Retry(total=2, status_forcelist=[503], backoff_factor=0)
    with requests.Session() as session:
        session.mount("http://", layby.requests.Adapter(max_retries=retries))
        assert gateway.run(lambda: session.get(origin.url)).text == "at last"
    assert len(gateway.fetches) == 3


def test_connection_errors_are_retried_as_the_adapter_says(gateway: Gateway) -> None:
    gateway.instead = failure("connect", "connect")
    with requests.Session() as session:
        session.mount("http://", layby.requests.Adapter(max_retries=2))
        with pytest.raises(requests.ConnectionError):
            gateway.run(lambda: session.get("http://shop.example/"))
    assert len(gateway.fetches) == 3


UNSUPPORTED: dict[str, Callable[[], dict[str, Any]]] = {
    "a file": lambda: {"data": io.BufferedReader(io.BytesIO(b"from a file"))},
    "a generator": lambda: {"data": (part for part in (b"from a ", b"generator"))},
    "a proxy": lambda: {"proxies": {"http": "http://127.0.0.1:1"}},
    "another host": lambda: {"headers": {"Host": "other.example"}},
}


@pytest.mark.parametrize("what", UNSUPPORTED)
def test_what_the_gateway_cannot_do_is_a_real_call_and_logged_once_a_line(
    gateway: Gateway,
    origin: Origin,
    session: requests.Session,
    what: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    origin.on("/", Reply(200, (), b"ok"))

    def call() -> object:
        try:
            return session.post(origin.url, **UNSUPPORTED[what]()).text
        except requests.exceptions.ProxyError:
            return "ok"  # There is none.

    assert gateway.run(call) == "ok"
    assert gateway.fetches == []
    assert not any(seen.by_gateway for seen in origin.seen)
    [source] = gateway.real_calls
    assert "test_requests.py:" in source
    assert gateway.run(call) == "ok"
    assert gateway.real_calls == [source] * 2
    [record] = [r for r in caplog.records if r.name == "layby" and "unsupported" in r.message]
    assert record.message.startswith(source)


@pytest.mark.parametrize(
    "options",
    [
        {"verify": False},
        {"verify": "/own/ca.pem"},
        {"cert": ("/own/client.pem", "/own/client.key")},
    ],
    ids=str,
)
def test_tls_of_ones_own_is_a_real_call(
    gateway: Gateway, session: requests.Session, options: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Certificates that do not exist: requests itself says so, and nobody else is asked.
    monkeypatch.setattr("os.path.exists", lambda path: True)
    with pytest.raises((requests.ConnectionError, OSError)):
        gateway.run(lambda: session.get("https://127.0.0.1:1/", timeout=5, **options))
    assert gateway.fetches == []


@pytest.mark.parametrize(
    "bundle",
    [stripe.ca_bundle_path, "/etc/ssl/certs/ca-certificates.crt"],
    ids=["stripe", "system"],
)
def test_a_librarys_and_the_systems_authorities_are_the_public_ones(
    gateway: Gateway, session: requests.Session, bundle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.path.exists", lambda path: True)
    gateway.instead = failure("connect", "connect")
    with pytest.raises(requests.ConnectionError):
        gateway.run(lambda: session.get("https://api.example/", verify=bundle))
    assert len(gateway.fetches) == 1


def test_a_body_larger_than_a_plan_is_a_real_call(
    gateway: Gateway, origin: Origin, session: requests.Session
) -> None:
    origin.on("/", Reply(200, (), b"ok"))
    body = b"x" * (1 << 20) + b"y"
    assert gateway.run(lambda: session.post(origin.url, data=body)).text == "ok"
    assert [(seen.by_gateway, seen.body) for seen in origin.seen] == [(False, body)]


def test_a_response_too_large_for_the_gateway_is_not_asked_for_past_its_policy(
    gateway: Gateway, origin: Origin, session: requests.Session
) -> None:
    origin.on("/", Reply(200, (), b"large"))
    gateway.instead = failure("too_large", "body")
    with pytest.raises(requests.ConnectionError, match="in phase body, by layby"):
        gateway.run(lambda: session.get(origin.url))
    assert origin.seen == []
    assert gateway.real_calls == []


def test_a_helper_thread_makes_real_calls(
    gateway: Gateway, origin: Origin, session: requests.Session
) -> None:
    origin.on("/", Reply(200, (), b"ok"))

    def view() -> list[str]:
        with ThreadPoolExecutor(2) as pool:
            return [r.text for r in pool.map(session.get, [origin.url] * 2)]

    assert gateway.run(view) == ["ok", "ok"]
    assert gateway.fetches == []
    assert [seen.by_gateway for seen in origin.seen] == [False, False]


def test_outside_layby_requests_are_the_librarys_own(
    origin: Origin, session: requests.Session
) -> None:
    origin.on("/", Reply(200, (), b"ok"))
    assert session.get(origin.url).text == "ok"
    assert [seen.by_gateway for seen in origin.seen] == [False]


def test_a_header_that_nobody_can_send_is_refused(
    gateway: Gateway, session: requests.Session
) -> None:
    with pytest.raises(requests.exceptions.InvalidHeader):
        gateway.run(lambda: session.get("http://shop.example/", headers={"A": "b\r\nC: d"}))
    assert gateway.fetches == []


def test_a_pool_manager_follows_redirects_retries_and_decodes(
    gateway: Gateway, origin: Origin
) -> None:
    origin.on("/old", Reply(301, (("Location", f"{origin.url}/new"),)))
    coded = Reply(200, (("Content-Encoding", "gzip"),), gzip.compress(b"here"))
    origin.on("/new", Reply(503, (("Retry-After", "0"),)), coded)

    with layby.urllib3.PoolManager() as pools:
        response = gateway.run(lambda: pools.request("GET", f"{origin.url}/old"))
    assert (response.status, response.data) == (200, b"here")
    assert len(gateway.fetches) == 3
    assert all(seen.header("accept-encoding") == "identity" for seen in origin.seen)
    assert origin.seen[0].header("user-agent") == f"python-urllib3/{urllib3.__version__}"


def test_a_parked_pool_keeps_no_connection_from_others(gateway: Gateway, origin: Origin) -> None:
    origin.on("/", Reply(200, (), b"ok"))
    with layby.urllib3.PoolManager(maxsize=1, block=True) as pools:
        pool = pools.connection_from_url(origin.url)
        taken = pool._get_conn()
        response = gateway.run(lambda: pool.request("GET", "/", preload_content=False))
        pool._put_conn(taken)
        assert response.read() == b"ok"
        response.release_conn()


def test_a_total_timeout_bounds_both(gateway: Gateway, origin: Origin) -> None:
    timeout = urllib3.Timeout(total=2, connect=1.5, read=10)
    with layby.urllib3.PoolManager() as pools:
        gateway.run(lambda: pools.request("GET", origin.url, timeout=timeout))
    assert gateway.fetches[0]["timeout"] == 2


def test_a_unix_socket_is_a_real_call(gateway: Gateway, patched: None) -> None:
    class UnixPool(urllib3.HTTPConnectionPool):
        def _new_conn(self) -> Any:
            raise ConnectionRefusedError("the socket's own")

    with UnixPool("localhost") as pool, pytest.raises(urllib3.exceptions.MaxRetryError) as raised:
        gateway.run(lambda: pool.request("GET", "/", retries=urllib3.Retry(0)))
    assert "the socket's own" in str(raised.value)
    assert gateway.fetches == []


def test_patching_twice_is_patching_once(gateway: Gateway, origin: Origin) -> None:
    before = urllib3.HTTPConnectionPool.urlopen
    layby.patch()
    layby.patch()
    try:
        with requests.Session() as session:
            session.mount("http://", layby.requests.Adapter())
            gateway.run(lambda: session.get(origin.url))
        assert len(gateway.fetches) == 1
    finally:
        layby.unpatch()
    assert urllib3.HTTPConnectionPool.urlopen is before


def test_the_fetch_by_the_name_of_patch_is_still_there() -> None:
    fetch = layby.patch("http://127.0.0.1:1/", json={"a": 1})
    assert (fetch.method, fetch.content) == ("PATCH", b'{"a":1}')
    with pytest.raises(layby.ConnectError):
        fetch.result()
    with pytest.raises(TypeError, match="json"):
        layby.patch(json={})  # type: ignore[call-overload]


def test_an_old_urllib3_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before = urllib3.HTTPConnectionPool.urlopen
    monkeypatch.setattr("layby._patch.version", lambda name: "1.26.20")
    layby.patch()
    try:
        assert urllib3.HTTPConnectionPool.urlopen is before
    finally:
        layby.unpatch()
    assert "needs urllib3 2 or newer, not 1.26.20" in caplog.text
