"""urllib3 by the gateway: each request that a pool would send is a fetch.

    pools = layby.urllib3.PoolManager()
    pools.request("GET", "https://stock.example/items/7")

Everything above one request stays urllib3's own: redirects, retries, errors, decoding.
A response is whole when it arrives, also with `preload_content=False`.

What needs a connection of this process is left to urllib3: proxies, client
certificates, other authorities than the public ones, Unix sockets, bodies from files
and generators.
"""

from __future__ import annotations

import functools
import io
import socket
from collections.abc import Callable, Mapping
from http.client import HTTPMessage
from typing import Any, cast

import urllib3
from urllib3 import HTTPHeaderDict, HTTPResponse, Retry, Timeout, exceptions
from urllib3.connectionpool import HTTPConnectionPool

from layby import _exceptions, _transport
from layby._response import Response
from layby._transport import Unsupported

__all__ = ["PoolManager"]

# Connections of other classes reach other things: Unix sockets, SOCKS proxies, HTTP/2.
_CONNECTIONS = ("urllib3.connection", "botocore.awsrequest")

# Settings of a pool with which TLS is not the public kind that the gateway speaks.
_TLS_SETTINGS = {
    "cert_file": "a client certificate",
    "key_file": "a client certificate",
    "ca_cert_dir": "certificate authorities of its own",
    "assert_hostname": "assert_hostname",
    "assert_fingerprint": "assert_fingerprint",
}
_CONNECTION_SETTINGS = {
    "source_address": "a source address",
    "server_hostname": "server_hostname",
    "ca_cert_data": "certificate authorities of its own",
    "ssl_context": "an ssl_context",
}

_USER_AGENT = f"python-urllib3/{urllib3.__version__}"  # type: ignore[attr-defined]

UrlOpen = Callable[..., urllib3.BaseHTTPResponse]


class PoolManager(urllib3.PoolManager):
    """A PoolManager whose requests are made by the gateway when the code runs in a slot."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        use_gateway(self)


def use_gateway(manager: urllib3.PoolManager) -> None:
    """Have the pools that `manager` makes from now on ask the gateway."""
    kinds = manager.pool_classes_by_scheme
    manager.pool_classes_by_scheme = {scheme: _by_gateway(kind) for scheme, kind in kinds.items()}


def urlopen(original: UrlOpen, pool: HTTPConnectionPool, *args: Any, **kwargs: Any) -> Any:
    """`HTTPConnectionPool.urlopen`, called `original`, for one request and what follows it."""
    asks = isinstance(pool, _Hop) or hasattr(original, _ASKS)
    if asks or not _transport.makes_fetches():
        return original(pool, *args, **kwargs)
    try:
        _check(pool)
        return original(_Hop.of(pool, original), *args, **kwargs)
    except Unsupported as why:
        _transport.note_real_call(why)
    return original(pool, *args, **kwargs)


def replacement() -> tuple[Any, str, UrlOpen]:
    """What `layby.patch()` replaces: the class of pools, a method's name, the new method."""
    original: UrlOpen = HTTPConnectionPool.urlopen

    @functools.wraps(original)
    def asking(pool: HTTPConnectionPool, *args: Any, **kwargs: Any) -> Any:
        return urlopen(original, pool, *args, **kwargs)

    setattr(asking, _ASKS, True)
    return HTTPConnectionPool, "urlopen", asking


# Marks an urlopen that asks the gateway by itself.
_ASKS = "_layby_asks"


@functools.cache
def _by_gateway(kind: Any) -> type[HTTPConnectionPool]:
    """The class of pools like `kind` that ask the gateway; with its name, for messages."""
    return kind if issubclass(kind, _ByGateway) else type(kind.__name__, (_ByGateway, kind), {})


class _ByGateway(HTTPConnectionPool):
    def urlopen(self, *args: Any, **kwargs: Any) -> Any:
        return urlopen(super().urlopen.__func__, self, *args, **kwargs)  # type: ignore[attr-defined]


class _Hop(HTTPConnectionPool):
    """Stands in for a pool in one call of its urlopen: it has no connections, but fetches.

    So urllib3's own code decides what comes before and after a request. A pool's own
    connection must not be taken meanwhile: a request that is parked would keep it from others.
    """

    original: UrlOpen
    real: HTTPConnectionPool

    @classmethod
    def of(cls, pool: HTTPConnectionPool, original: UrlOpen) -> HTTPConnectionPool:
        kind: Any = type(pool)
        hop: HTTPConnectionPool = object.__new__(_hop_class(kind))
        vars(hop).update(vars(pool), real=pool, original=original)
        return hop

    def urlopen(self, *args: Any, **kwargs: Any) -> Any:
        # A retry or a redirect. What is unsupported about it must not repeat what came before.
        return urlopen(self.original, self.real, *args, **kwargs)

    def _get_conn(self, timeout: float | None = None) -> Any:
        if self.pool is None:
            raise exceptions.ClosedPoolError(self, "Pool is closed.")
        return _NoConnection()

    def _put_conn(self, conn: Any) -> None:
        pass

    def _make_request(  # type: ignore[override]
        self,
        conn: Any,
        method: str,
        url: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        retries: Retry | None = None,
        timeout: Any = None,
        *,
        preload_content: bool = True,
        decode_content: bool = True,
        enforce_content_length: bool = True,
        **_: Any,
    ) -> urllib3.BaseHTTPResponse:
        fetch = _transport.new_fetch(
            method,
            self._absolute(url),
            _sent(headers),
            _body(body),
            _seconds(timeout),
        )
        try:
            response = _transport.run(fetch)
        except _exceptions.FetchError as error:
            raise _translated(self, url, error) from error
        message = _message(response)
        return HTTPResponse(
            body=io.BytesIO(_transport.raw_body(response)),
            headers=HTTPHeaderDict(message.items()),
            status=response.status_code,
            version=11,
            version_string="HTTP/1.1",
            reason=response.reason_phrase,
            preload_content=preload_content,
            decode_content=decode_content,
            original_response=cast(Any, _Original(message)),
            retries=retries,
            enforce_content_length=enforce_content_length,
            request_method=method,
            request_url=url,
        )

    def _absolute(self, url: str) -> str:
        if not url.startswith("/"):
            return url
        host = f"[{self.host}]" if ":" in self.host else self.host
        default = self.port in (None, 443 if self.scheme == "https" else 80)
        port = "" if default else f":{self.port}"
        return f"{self.scheme}://{host}{port}{url}"


@functools.cache
def _hop_class(kind: Any) -> type[HTTPConnectionPool]:
    return type(kind.__name__, (_Hop, kind), {})


class _NoConnection:
    """What urlopen does with a connection, done to none."""

    proxy = None
    is_closed = False
    timeout: Any = None

    def close(self) -> None:
        pass


class _Original:
    """Of http.client's response what others look for in urllib3's: cookies are read from it."""

    def __init__(self, message: HTTPMessage) -> None:
        self.msg = message

    def isclosed(self) -> bool:
        return True

    def close(self) -> None:
        pass


def _message(response: Response) -> HTTPMessage:
    message = HTTPMessage()
    for name, value in _transport.raw_headers(response):
        message[name] = value  # Adds; it replaces nothing.
    return message


def _sent(headers: Mapping[str, str] | None) -> list[tuple[str | bytes, str | bytes]]:
    """The headers that urllib3 would send, with its own unless the caller gave or refused them."""
    pairs = _transport.headers_of(headers)
    names = {name.lower() for name, _ in pairs}
    sent = [(name, value) for name, value in pairs if value != urllib3.util.SKIP_HEADER]
    if "accept-encoding" not in names:
        sent.append(("Accept-Encoding", "identity"))
    if "user-agent" not in names:
        sent.append(("User-Agent", _USER_AGENT))
    return sent


def _body(body: Any) -> bytes:
    if type(body).__qualname__ == "AwsChunkedWrapper" and type(body._raw) is io.BytesIO:
        # What botocore makes of bytes that are to go to S3 by https: with a checksum behind.
        whole: bytes = body.read()
        body.seek(0)
        return whole
    return _transport.body_bytes(body)


def _seconds(timeout: Timeout) -> float | None:
    clock = timeout.clone()
    clock.start_connect()
    connect = Timeout.resolve_default_timeout(clock.connect_timeout)
    whole = _transport.seconds(connect, clock.read_timeout)
    total = Timeout.resolve_default_timeout(timeout.total)
    return whole if whole is None or total is None else min(whole, total)


def _check(pool: HTTPConnectionPool) -> None:
    """Raise `Unsupported` when the pool's connections are not what the gateway can make."""
    if _transport.stands_in():
        return
    if pool.proxy is not None:
        raise Unsupported("a proxy")
    own_way = type(pool)._new_conn.__module__ != "urllib3.connectionpool"
    if own_way or pool.ConnectionCls.__module__ not in _CONNECTIONS:
        raise Unsupported(f"connections of its own, {pool.ConnectionCls.__qualname__}")
    by_botocore = pool.ConnectionCls.__module__ == "botocore.awsrequest"
    if by_botocore and _transport.called_by("botocore.credentials"):
        # From the machine's metadata service, on an address that no policy should open, and
        # under a lock for which the slot's other requests would wait.
        raise Unsupported("botocore's own credentials")
    settings = dict(pool.conn_kw)
    if by_botocore:
        # It always brings a context, with nothing of its own in it: certificates are on the pool.
        settings.pop("ssl_context", None)
    _refuse(settings, _CONNECTION_SETTINGS)
    if pool.scheme == "https":
        _refuse(vars(pool), _TLS_SETTINGS)
        if vars(pool)["cert_reqs"] not in (None, "CERT_REQUIRED", 2):
            raise Unsupported("verify=False")
        bundle = vars(pool)["ca_certs"]
        if bundle is not None and not _transport.is_public_bundle(bundle):
            raise Unsupported("certificate authorities of its own")


def _refuse(settings: Mapping[str, Any], unsupported: Mapping[str, str]) -> None:
    for name, what in unsupported.items():
        if settings.get(name) is not None:
            raise Unsupported(what)


def _translated(
    pool: HTTPConnectionPool, url: str, error: _exceptions.FetchError
) -> exceptions.HTTPError:
    """The error that urllib3 itself would raise, with the gateway's words."""
    words = f"{error.message} (in phase {error.phase}, by layby)"
    connection = cast(Any, pool)
    match error:
        case _exceptions.Timeout() if error.phase in ("url", "dns", "connect"):
            return exceptions.ConnectTimeoutError(connection, f"Connection timed out: {words}")
        case _exceptions.Timeout():
            return exceptions.ReadTimeoutError(pool, url, f"Read timed out: {words}")
        case _exceptions.ConnectError() if error.phase == "dns":
            return exceptions.NameResolutionError(pool.host, connection, socket.gaierror(words))
        case _exceptions.ConnectError() if "certificate" in error.message:
            return exceptions.SSLError(words)
        case _exceptions.ConnectError():
            return exceptions.NewConnectionError(
                connection, f"Failed to establish a new connection: {words}"
            )
        case _exceptions.Refused():
            return exceptions.NewConnectionError(
                connection, f"Refused by the gateway's [outbound] allow: {words}"
            )
    return exceptions.ProtocolError(f"Connection aborted: {words}", error)
