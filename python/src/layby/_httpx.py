"""httpx by the gateway, under both of its names: httpx, and httpx2 which carries it on.

Here is all that the two have in common; `layby.httpx` and `layby.httpx2` bind it to the
one or the other. A request of a client is a fetch when its code runs in a slot and the
options of the transport are ones that the gateway can honour; else the library's own
transport sends it. An AsyncClient also works in a slot, without an event loop: its await
is then one of layby's.
"""

from __future__ import annotations

import functools
import inspect
import ssl
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from layby import _exceptions, _transport
from layby._plan import Fetch, sleep
from layby._response import Response
from layby._transport import Unsupported

Send = Callable[[Any], Any]

# Options of HTTPTransport with which a connection is not one that the gateway can make.
_OPTIONS = {
    "proxy": "a proxy",
    "uds": "a Unix socket",
    "local_address": "a source address",
}


# Its options, a proxy or a client certificate perhaps, are not known.
_EARLY = "a transport made before layby.patch()"


class Library(Protocol):
    """httpx or httpx2: what of it is used here."""

    Response: Any
    ByteStream: Any
    SyncByteStream: Any
    HTTPTransport: Any
    ConnectError: Any
    ConnectTimeout: Any
    ReadError: Any
    ReadTimeout: Any
    WriteError: Any
    WriteTimeout: Any
    RemoteProtocolError: Any
    UnsupportedProtocol: Any


class Sender:
    """What a transport with these options does with a request."""

    def __init__(self, library: Library, options: Mapping[str, Any] | None) -> None:
        self._library = library
        self._options = options or {}
        self._early = options is None
        # What the gateway cannot honour: of every request, and of those by https.
        self._obstacle = _EARLY if options is None else _obstacle(options)
        self._tls_obstacle = _tls_obstacle(self._options)

    def send(self, request: Any, real: Send) -> Any:
        """For a Client; `real` is the library's own way."""
        if _transport.makes_fetches():
            try:
                return self._by_gateway(request)
            except Unsupported as why:
                _transport.note_real_call(why)
        return real(request)

    async def send_async(self, request: Any, real: Send) -> Any:
        """For an AsyncClient."""
        if _transport.makes_fetches():
            try:
                return await self._by_gateway_async(request)
            except Unsupported as why:
                _transport.note_real_call(why)
        return await (real(request) if _transport.under_loop() else self._blocking(request))

    def _by_gateway(self, request: Any) -> Any:
        for attempt in range(self._attempts):
            if attempt:
                _transport.run_sleep(sleep(_backoff(attempt)))
            try:
                return self._response(_transport.run(self._fetch(request)))
            except _exceptions.FetchError as error:
                self._give_up(error, request, attempt)
        raise AssertionError("the last attempt returns or raises")

    async def _by_gateway_async(self, request: Any) -> Any:
        for attempt in range(self._attempts):
            if attempt:
                await sleep(_backoff(attempt))
            try:
                return self._response(await _transport.run_async(self._fetch(request)))
            except _exceptions.FetchError as error:
                self._give_up(error, request, attempt)
        raise AssertionError("the last attempt returns or raises")

    async def _blocking(self, request: Any) -> Any:
        """Send it by the library's blocking transport, as the other needs an event loop.

        In a slot, and wherever layby steps a coroutine without a loop, blocking is the way.
        """
        if self._early:
            raise _exceptions.Error(f"{_EARLY} has no event loop here: call layby.patch() earlier")
        if not isinstance(request.stream, self._library.SyncByteStream):
            raise _exceptions.Error(
                "an asynchronous request body needs an event loop: send it inside `async with "
                "layby.io`"
            )
        # Opened for this request only: nobody would close it.
        with by_itself(self._library.HTTPTransport, self._options) as transport:
            response = transport.handle_request(request)
            content = b"".join(response.stream)
            response.close()
        reason = response.reason_phrase.encode("latin-1")
        return self._whole(response.status_code, response.headers.raw, content, reason)

    @property
    def _attempts(self) -> int:
        """How often it is tried to reach the origin: an option of httpx's transports."""
        return 1 + int(self._options.get("retries") or 0)

    def _fetch(self, request: Any) -> Fetch:
        """The fetch for a request. Raises `Unsupported`."""
        url = request.url
        obstacle = self._obstacle or (self._tls_obstacle if url.scheme == "https" else None)
        if obstacle is not None and not _transport.stands_in():
            raise Unsupported(obstacle)
        if url.scheme not in ("http", "https"):
            raise Unsupported(f"a URL with the scheme {url.scheme!r}")
        for extension in ("sni_hostname", "target"):
            if extension in request.extensions:
                raise Unsupported(f"the extension {extension}")
        return _transport.new_fetch(
            request.method,
            f"{url.scheme}://{url.netloc.decode('ascii')}{url.raw_path.decode('ascii')}",
            request.headers.raw,
            self._body(request),
            _seconds(request.extensions.get("timeout", {})),
        )

    def _body(self, request: Any) -> bytes:
        # A request that follows a redirect has the stream and not its content.
        if isinstance(request.stream, self._library.ByteStream):
            return b"".join(request.stream)
        if not _transport.stands_in():
            raise Unsupported("a request body from a file or a generator")
        content: bytes = request.read()
        return content

    def _response(self, response: Response) -> Any:
        return self._whole(
            response.status_code,
            [
                (n.encode("latin-1"), v.encode("latin-1"))
                for n, v in _transport.raw_headers(response)
            ],
            _transport.raw_body(response),
            response.reason_phrase.encode("latin-1"),
        )

    def _whole(
        self, status: int, headers: list[tuple[bytes, bytes]], content: bytes, reason: bytes
    ) -> Any:
        # There is no connection that the client could keep for another request. With HTTP/2
        # it need not try: openai's stream then does not read on after its last event, for
        # which it would want an event loop.
        return self._library.Response(
            status_code=status,
            headers=headers,
            stream=self._library.ByteStream(content),
            extensions={"http_version": b"HTTP/2", "reason_phrase": reason},
        )

    def _give_up(self, error: _exceptions.FetchError, request: Any, attempt: int) -> None:
        """Raise the library's own error, unless it is time for another attempt."""
        connecting = isinstance(error, _exceptions.ConnectError) or (
            isinstance(error, _exceptions.Timeout) and error.phase in ("url", "dns", "connect")
        )
        if not connecting or attempt + 1 == self._attempts:
            raise self._translated(error, request) from error

    def _translated(self, error: _exceptions.FetchError, request: Any) -> Exception:
        library, before = self._library, error.phase in ("url", "dns", "connect")
        words = f"{error.message} (in phase {error.phase}, by layby)"
        match error:
            case _exceptions.Timeout():
                sending = library.WriteTimeout if error.phase == "send" else library.ReadTimeout
                kind = library.ConnectTimeout if before else sending
            case _exceptions.ConnectError():
                kind = library.ConnectError
            case _exceptions.Refused():
                kind = library.ConnectError
                words = f"refused by the gateway's [outbound] allow: {words}"
            case _exceptions.TooLarge():
                kind = library.ReadError
            case _ if error.phase == "url":
                kind = library.UnsupportedProtocol
            case _ if error.phase == "send":
                kind = library.WriteError
            case _:
                kind = library.RemoteProtocolError
        failure: Exception = kind(words, request=request)
        return failure


class Transport:
    """What `layby.httpx.Transport` and `layby.httpx2.Transport` are, but for their library."""

    _library: Library
    _own: type[Any]
    _own_async: type[Any]

    def __init__(self, **options: Any) -> None:
        self._options = options
        self._sender = Sender(self._library, options)
        # Made when first needed: reading certificates takes some ten milliseconds.
        self._real: Any = None
        self._real_async: Any = None

    def handle_request(self, request: Any) -> Any:
        """Send a request of a Client."""
        return self._sender.send(request, self._send)

    async def handle_async_request(self, request: Any) -> Any:
        """Send a request of an AsyncClient."""
        return await self._sender.send_async(request, self._send_async)

    def close(self) -> None:
        """Close what a Client has used."""
        if self._real is not None:
            self._real.close()

    async def aclose(self) -> None:
        """Close what an AsyncClient has used."""
        # It has connections only from loops; without one they cannot be closed.
        if self._real_async is not None and _transport.under_loop():
            await self._real_async.aclose()

    def _send(self, request: Any) -> Any:
        if self._real is None:
            self._real = by_itself(self._own, self._options)
        return self._real.handle_request(request)

    async def _send_async(self, request: Any) -> Any:
        if self._real_async is None:
            self._real_async = by_itself(self._own_async, self._options)
        return await self._real_async.handle_async_request(request)


def replacements(library: Any) -> Iterator[tuple[Any, str, Any]]:
    """What `layby.patch()` replaces in a library: a class, a method's name, the new method."""
    blocking, asynchronous = library.HTTPTransport, library.AsyncHTTPTransport
    yield blocking, "__init__", _noting_options(library, blocking.__init__)
    yield asynchronous, "__init__", _noting_options(library, asynchronous.__init__)
    early = Sender(library, None)
    send, send_async = blocking.handle_request, asynchronous.handle_async_request

    @functools.wraps(send)
    def handle_request(transport: Any, request: Any) -> Any:
        sender = vars(transport).get(_SENDER, early)
        real = functools.partial(send, transport)
        return real(request) if sender is None else sender.send(request, real)

    @functools.wraps(send_async)
    async def handle_async_request(transport: Any, request: Any) -> Any:
        sender = vars(transport).get(_SENDER, early)
        real = functools.partial(send_async, transport)
        return await (real(request) if sender is None else sender.send_async(request, real))

    yield blocking, "handle_request", handle_request
    yield asynchronous, "handle_async_request", handle_async_request
    for name in ("aclose", "__aexit__"):
        yield asynchronous, name, _under_loop_only(getattr(asynchronous, name))


# Where a patched transport has its sender; None: it asks nobody.
_SENDER = "_layby_sender"


def by_itself(kind: type[Any], options: Mapping[str, Any]) -> Any:
    """One of the library's own transports, which sends for itself even after `layby.patch()`."""
    transport = kind(**options)
    setattr(transport, _SENDER, None)
    return transport


def _under_loop_only(close: Callable[..., Any]) -> Callable[..., Any]:
    """Closing needs a loop, as opening did. In a slot nothing was opened."""

    @functools.wraps(close)
    async def closing(transport: Any, *args: Any) -> None:
        if _transport.under_loop():
            await close(transport, *args)

    return closing


def _noting_options(library: Library, init: Callable[..., None]) -> Callable[..., None]:
    """`__init__` of a transport that keeps its options: it does not tell them later."""
    signature = inspect.signature(init)

    @functools.wraps(init)
    def noting(transport: Any, *args: Any, **kwargs: Any) -> None:
        init(transport, *args, **kwargs)
        options = dict(signature.bind(transport, *args, **kwargs).arguments)
        options.pop("self")
        own_context = isinstance(options.get("verify"), ssl.SSLContext)
        if own_context and _transport.called_by("stripe._http_client"):
            # It holds the public authorities of stripe's bundle, and nothing else.
            del options["verify"]
        setattr(transport, _SENDER, Sender(library, options))

    return noting


def _obstacle(options: Mapping[str, Any]) -> str | None:
    for name, what in _OPTIONS.items():
        if options.get(name) is not None:
            return what
    if options.get("http2") or not options.get("http1", True):
        return "HTTP/2 by choice"
    return None


def _tls_obstacle(options: Mapping[str, Any]) -> str | None:
    if options.get("cert") is not None:
        return "a client certificate"
    match options.get("verify", True):
        case True:
            return None
        case False:
            return "verify=False"
        case str() as bundle if _transport.is_public_bundle(bundle):
            return None
    # A context does not tell whether a client certificate is in it.
    return "certificates of its own"


def _seconds(timeout: Mapping[str, float | None]) -> float | None:
    return _transport.seconds(timeout.get("connect"), timeout.get("read"))


def _backoff(attempt: int) -> float:
    """As httpx has it: at once, half a second, one, two, …"""
    return 0.0 if attempt == 1 else 0.5 * 2 ** (attempt - 2)
