"""One fetch made by this process itself: by httpx if it is installed, else http.client.

Every failure is a value. The whole exchange has one deadline, which is checked between
reads; a thread that waits at the deadline is given up on by `_outside`.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal
from urllib.parse import urljoin, urlsplit, urlunsplit

from layby import _urls
from layby._exceptions import Phase
from layby._request import Request
from layby._response import Response

if TYPE_CHECKING:
    import httpx

_MAX_REDIRECTS = 20


@dataclass(frozen=True, slots=True)
class Failure:
    """A fetch without a response, in the words of the protocol. `url` has secrets masked."""

    kind: Literal["connect", "timeout", "refused", "too_large", "failed"]
    phase: str
    message: str
    url: str = ""


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
        try:
            parts = urlsplit(self.url)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise _Failed("failed", "not an absolute http or https URL")
            parts.port  # noqa: B018 - raises ValueError when it is no number
            return _by_httpx(self) if _has_httpx() else _by_http_client(self)
        except _Failed as error:
            return Failure(error.kind, self.phase, str(error), _urls.masked(self.url))
        except TimeoutError:
            return Failure("timeout", self.phase, "took too long", _urls.masked(self.url))
        # Nothing may leave: this runs on a thread whose waiter needs an outcome.
        except Exception as error:  # noqa: BLE001
            message = f"{type(error).__name__}: {error}"
            return Failure("failed", self.phase, message, _urls.masked(self.url))

    def left(self) -> float:
        """Seconds until the deadline; TimeoutError when it is over."""
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


def _by_httpx(exchange: Exchange) -> Response:
    import httpx

    method, url, headers, body = exchange.request
    try:
        timeout = httpx.Timeout(exchange.left()).as_dict()
        # Made by hand: a client would add headers of its own.
        request = httpx.Request(
            method, url, headers=headers, content=body or None, extensions={"timeout": timeout}
        )
        with httpx.Client(verify=_httpx_ssl_context(), max_redirects=_MAX_REDIRECTS) as client:
            exchange.phase = "connect"
            answer = client.send(request, stream=True, follow_redirects=exchange.follow_redirects)
            try:
                exchange.phase = "body"
                exchange.url = str(answer.url)
                content = exchange.collect(answer.iter_raw())
            finally:
                answer.close()
    except httpx.InvalidURL as error:
        exchange.phase = "url"
        raise _Failed("failed", str(error)) from error
    except httpx.TransportError as error:
        raise _failed_transport(exchange, error) from error
    except httpx.TooManyRedirects as error:
        exchange.phase = "redirect"
        raise _Failed("failed", str(error)) from error
    return Response(
        answer.status_code,
        reason_phrase=answer.reason_phrase,
        headers=[(n.decode("latin-1"), v.decode("latin-1")) for n, v in answer.headers.raw],
        content=content,
        url=exchange.url,
        seconds=time.monotonic() - exchange.begun,
    )


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


def _by_http_client(exchange: Exchange) -> Response:
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
            if answer.status in (301, 302, 303, 307, 308) and location is not None:
                exchange.phase = "redirect"
                method, url, headers, body = _redirected(
                    answer.status, urljoin(url, location), Request(method, url, headers, body)
                )
                exchange.url = url
                continue
            exchange.phase = "body"
            content = exchange.collect(_chunks(exchange, sock, answer))
            return Response(
                answer.status,
                reason_phrase=answer.reason,
                headers=answer.getheaders(),
                content=content,
                url=url,
                seconds=time.monotonic() - exchange.begun,
            )
        finally:
            connection.close()
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


def _redirected(status: int, url: str, request: Request) -> Request:
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
