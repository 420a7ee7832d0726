"""One fetch made by this process itself: by httpx if it is installed, else http.client.

Every failure is a value. The whole exchange has one deadline, which is checked between
reads; a thread that waits at the deadline is given up on by `_outside`. A response may
also be read as it comes (`Exchange.open`): then the deadline is that of its head.
"""

from __future__ import annotations

import http.client
import math
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal, TypeVar
from urllib.parse import urljoin, urlsplit, urlunsplit

from layby import _urls
from layby._exceptions import Phase
from layby._request import Request
from layby._response import Response

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")

_MAX_REDIRECTS = 20

# How long a stream may send nothing, in seconds.
_IDLE = 60.0


@dataclass(frozen=True, slots=True)
class Failure:
    """A fetch without a response, in the words of the protocol. `url` has secrets masked."""

    kind: Literal["connect", "timeout", "refused", "too_large", "failed"]
    phase: str
    message: str
    url: str = ""


@dataclass(frozen=True, slots=True)
class Stream:
    """A response whose body is still to be read; `close` ends it at any moment."""

    status: int
    reason: str
    headers: list[tuple[str, str]]
    chunks: Iterator[bytes]
    close: Callable[[], None]


class _Failed(Exception):
    def __init__(self, kind: Literal["connect", "timeout", "failed"], message: str) -> None:
        super().__init__(message)
        self.kind: Literal["connect", "timeout", "failed"] = kind


class Exchange:
    """One fetch with its redirects. `deadline` is an instant of the monotonic clock."""

    def __init__(self, request: Request, follow_redirects: bool, deadline: float) -> None:
        self.request = request
        self.follow_redirects = follow_redirects
        self.deadline = deadline
        self.begun = time.monotonic()
        # How far it came; read from other threads.
        self.phase: Phase = "url"
        self.url = request.url

    def run(self) -> Response | Failure:
        """Make the fetch."""

        def whole() -> Response:
            with _errors_of_httpx(self):
                opened = self._open()
                try:
                    content = self.collect(opened.chunks)
                finally:
                    opened.close()
            return Response(
                opened.status,
                reason_phrase=opened.reason,
                headers=opened.headers,
                content=content,
                url=self.url,
                seconds=time.monotonic() - self.begun,
            )

        return self._guarded(whole)

    def open(self) -> Stream | Failure:
        """Make the fetch up to the head of its response."""

        def head() -> Stream:
            with _errors_of_httpx(self):
                opened = self._open()
            self.deadline = math.inf
            return opened

        return self._guarded(head)

    def _open(self) -> Stream:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise _Failed("failed", "not an absolute http or https URL")
        parts.port  # noqa: B018 - raises ValueError when it is no number
        return _by_httpx(self) if _has_httpx() else _by_http_client(self)

    def _guarded(self, act: Callable[[], T]) -> T | Failure:
        try:
            return act()
        except _Failed as error:
            return Failure(error.kind, self.phase, str(error), _urls.masked(self.url))
        except TimeoutError:
            return Failure("timeout", self.phase, "took too long", _urls.masked(self.url))
        # Nothing may leave: this runs on a thread whose waiter needs an outcome.
        except Exception as error:  # noqa: BLE001
            message = f"{type(error).__name__}: {error}"
            return Failure("failed", self.phase, message, _urls.masked(self.url))

    def left(self) -> float:
        """Seconds until the deadline, or to the next byte; TimeoutError when it is over."""
        if self.deadline == math.inf:
            return _IDLE
        seconds = self.deadline - time.monotonic()
        if seconds <= 0:
            raise TimeoutError
        return seconds

    def collect(self, chunks: Iterator[bytes]) -> bytes:
        """The whole body, within the deadline."""
        body = []
        for chunk in chunks:
            body.append(chunk)
            self.left()
        return b"".join(body)


@cache
def _has_httpx() -> bool:
    try:
        import httpx  # noqa: F401
    except ImportError:
        return False
    return True


@cache
def _httpx_ssl_context() -> ssl.SSLContext:
    # Reading the certificates takes some 10 ms, so once for all.
    import httpx

    return httpx.create_ssl_context()


def _by_httpx(exchange: Exchange) -> Stream:
    import httpx

    method, url, headers, body = exchange.request
    timeout = httpx.Timeout(exchange.left()).as_dict()
    # Made by hand: a client would add headers of its own.
    request = httpx.Request(
        method, url, headers=headers, content=body or None, extensions={"timeout": timeout}
    )
    client = httpx.Client(verify=_httpx_ssl_context(), max_redirects=_MAX_REDIRECTS)
    try:
        exchange.phase = "connect"
        answer = client.send(request, stream=True, follow_redirects=exchange.follow_redirects)
    except BaseException:
        client.close()
        raise
    exchange.phase = "body"
    exchange.url = str(answer.url)

    def close() -> None:
        answer.close()
        client.close()

    return Stream(
        answer.status_code,
        answer.reason_phrase,
        [(n.decode("latin-1"), v.decode("latin-1")) for n, v in answer.headers.raw],
        answer.iter_raw(),
        close,
    )


@contextmanager
def _errors_of_httpx(exchange: Exchange) -> Iterator[None]:
    if not _has_httpx():
        yield
        return
    import httpx

    try:
        yield
    except httpx.InvalidURL as error:
        exchange.phase = "url"
        raise _Failed("failed", str(error)) from error
    except httpx.TransportError as error:
        raise _failed_transport(exchange, error) from error
    except httpx.TooManyRedirects as error:
        exchange.phase = "redirect"
        raise _Failed("failed", str(error)) from error


def _failed_transport(exchange: Exchange, error: httpx.TransportError) -> _Failed:
    import httpx

    words = str(error) or type(error).__name__
    match error:
        case httpx.ConnectTimeout() | httpx.PoolTimeout():
            return _Failed("timeout", "took too long to connect")
        case httpx.TimeoutException():
            if exchange.phase == "connect":
                exchange.phase = "send" if isinstance(error, httpx.WriteTimeout) else "head"
            return _Failed("timeout", "took too long")
        case httpx.ConnectError() | httpx.ProxyError():
            if _comes_from(error, socket.gaierror):
                exchange.phase = "dns"
            return _Failed("connect", words)
        case httpx.UnsupportedProtocol():
            exchange.phase = "redirect"
        case _ if exchange.phase == "connect":
            exchange.phase = "head"
    return _Failed("failed", words)


def _comes_from(error: BaseException, kind: type[BaseException]) -> bool:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, kind):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def _by_http_client(exchange: Exchange) -> Stream:
    method, url, headers, body = exchange.request
    for _ in range(_MAX_REDIRECTS + 1):
        connection = _connect(exchange, url)
        try:
            sock = connection.sock
            exchange.phase = "send"
            _send(connection, method, url, headers, body)
            exchange.phase = "head"
            sock.settimeout(exchange.left())
            answer = connection.getresponse()
            location = answer.getheader("location") if exchange.follow_redirects else None
        except BaseException:
            connection.close()
            raise
        if answer.status not in (301, 302, 303, 307, 308) or location is None:
            exchange.phase = "body"
            chunks = _chunks(exchange, sock, answer)
            return Stream(
                answer.status, answer.reason, answer.getheaders(), chunks, connection.close
            )
        connection.close()
        exchange.phase = "redirect"
        method, url, headers, body = redirected(
            answer.status, urljoin(url, location), Request(method, url, headers, body)
        )
        exchange.url = url
    raise _Failed("failed", f"more than {_MAX_REDIRECTS} redirects")


def _connect(exchange: Exchange, url: str) -> http.client.HTTPConnection:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise _Failed("failed", "not an absolute http or https URL")
    exchange.phase = "connect"
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        connection = http.client.HTTPSConnection(
            parts.hostname, parts.port, timeout=exchange.left()
        )
    else:
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=exchange.left())
    try:
        connection.connect()
    except TimeoutError:
        raise
    except socket.gaierror as error:
        exchange.phase = "dns"
        raise _Failed("connect", str(error)) from error
    except OSError as error:
        raise _Failed("connect", str(error)) from error
    return connection


def _send(
    connection: http.client.HTTPConnection,
    method: str,
    url: str,
    headers: list[tuple[str, str]],
    body: bytes,
) -> None:
    parts = urlsplit(url)
    target = urlunsplit(("", "", parts.path or "/", parts.query, ""))
    given = {name.lower() for name, _ in headers}
    connection.putrequest(method, target, skip_host="host" in given, skip_accept_encoding=True)
    for name, value in headers:
        connection.putheader(name, value)
    if (body or method in ("POST", "PUT", "PATCH")) and "content-length" not in given:
        connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body or None)


def redirected(status: int, url: str, request: Request) -> Request:
    """The request that follows a redirect to `url`."""
    method, old_url, headers, body = request
    dropped = set()
    if (status == 303 and method != "HEAD") or (status in (301, 302) and method == "POST"):
        method, body = "GET", b""
        dropped |= {"content-type", "content-length"}
    old, new = urlsplit(old_url), urlsplit(url)
    if (old.scheme, old.netloc) != (new.scheme, new.netloc):
        # What was meant for one origin is not for another.
        dropped |= {"authorization", "cookie", "host"}
    kept = [(name, value) for name, value in headers if name.lower() not in dropped]
    return Request(method, url, kept, body)


def _chunks(
    exchange: Exchange, sock: socket.socket, answer: http.client.HTTPResponse
) -> Iterator[bytes]:
    while True:
        if not answer.isclosed():
            sock.settimeout(exchange.left())
        chunk = answer.read1(65536)
        if not chunk:
            break
        yield chunk
    if answer.length:
        raise _Failed("failed", f"the body ended {answer.length} bytes too early")
