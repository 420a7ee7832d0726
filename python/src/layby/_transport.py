"""What the transports share: is a request for the gateway, and the fetch that makes it.

A transport sits below a client library, where one request leaves the process. Redirects,
retries, cookies and authentication happen above it, so every request is a fetch of its own
that follows nothing. What the gateway cannot do as the library would is left to the
library: the real call. It holds the slot, and so counts as waiting in place.
"""

from __future__ import annotations

import asyncio
import io
import json
import sys
from collections.abc import Coroutine, Iterable, Mapping
from functools import cache
from importlib.util import find_spec
from os.path import dirname, join, realpath
from types import FrameType
from typing import Any, BinaryIO, TypeVar

from layby import _plan, _request, _source
from layby._drive import drive
from layby._exceptions import FetchError, TooLarge
from layby._job import Suspend, in_slot, tls
from layby._plan import Fetch, Sleep, Thing
from layby._response import Response
from layby._wire import FLAG_LOCAL, Frame, WireError

T = TypeVar("T")

# Bundles of certificate authorities that libraries bring along: the public ones.
_BUNDLES = (
    ("certifi", "cacert.pem"),
    ("botocore", "cacert.pem"),
    ("stripe", "data/ca-certificates.crt"),
)


# Where systems keep theirs. The gateway goes by the system's, too.
_SYSTEM_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)


class Unsupported(Exception):
    """The gateway cannot make this request; `str()` says why. Nothing has come of it yet."""


def makes_fetches() -> bool:
    """Whether a request of the calling code becomes a fetch.

    Not outside layby, on helper threads and under event loops: there no slot is to be freed.
    """
    return _plan.stand_in is not None or in_slot()


def under_loop() -> bool:
    """Whether an event loop runs the calling code."""
    if asyncio._get_running_loop() is not None:
        return True
    # Another than asyncio's: trio.
    sniffio = sys.modules.get("sniffio")
    if sniffio is None:
        return False
    try:
        return bool(sniffio.current_async_library())
    except sniffio.AsyncLibraryNotFoundError:
        return False


def stands_in() -> bool:
    """Whether layby.testing answers, for which there is nothing that it does not support."""
    return _plan.stand_in is not None


def new_fetch(
    method: str,
    url: str,
    headers: Iterable[tuple[str | bytes, str | bytes]],
    body: bytes,
    timeout: float | None,
) -> Fetch:
    """The fetch for one request, exactly as given. `url` has no user info and no fragment.

    Raises `Unsupported`, or ValueError for what can be sent by nobody.
    """
    request = _request.exact(method, url, headers, body)
    if request.method == "CONNECT":
        raise Unsupported("a CONNECT")
    for name, value in request.headers:
        match name.lower():
            case "host" if not _same_host(value, url):
                raise Unsupported("a Host header with another name than the URL")
            case "upgrade":
                raise Unsupported("an upgrade to another protocol")
    # A timeout of zero means "at once", which no plan can say.
    return Fetch(request, None if timeout is None else max(timeout, 0.001), False)


def run(fetch: Fetch) -> Response:
    """Make the fetch; parks in greenlet mode, else waits in place."""
    try:
        # Under layby.testing there may be an event loop: `.result()` would refuse.
        return fetch.result() if in_slot() else drive(_awaited(fetch))
    except FetchError as error:
        raise _or_unsupported(error) from None


async def run_async(fetch: Fetch) -> Response:
    """Make the fetch; parks where an await does."""
    try:
        return await fetch
    except FetchError as error:
        raise _or_unsupported(error) from None


def run_sleep(sleep: Sleep) -> None:
    """Wait before another attempt, as `run` waits."""
    if in_slot():
        sleep.result()
    else:
        drive(_awaited(sleep))


def raw_body(response: Response) -> bytes:
    """The body with its content coding on, as the headers say: the library undoes it."""
    return response._body


def raw_headers(response: Response) -> list[tuple[str, str]]:
    """The headers, repeated ones apart."""
    return response.headers._pairs


def seconds(connect: float | None, read: float | None) -> float | None:
    """A library's two timeouts as one for the whole fetch; None: the gateway's default."""
    return None if read is None else read + (connect or 0.0)


def body_bytes(body: Any) -> bytes:
    """A request body that is in memory. Raises `Unsupported` for files and generators."""
    match body:
        case None:
            return b""
        case str():
            return body.encode()
        case bytes():
            return body
        case bytearray() | memoryview():
            return bytes(body)
        case io.BytesIO() if type(body) is io.BytesIO:
            # Not read: the library may have to, if it is too long for a plan.
            return bytes(body.getbuffer()[body.tell() :])
    if not stands_in():
        raise Unsupported("a request body from a file or a generator")
    if hasattr(body, "read"):
        body = [body.read()]
    return b"".join(part.encode() if isinstance(part, str) else part for part in body)


def headers_of(mapping: Mapping[str, Any] | None) -> list[tuple[str | bytes, str | bytes]]:
    """The pairs of a mapping whose `items()` give repeated headers apart; numbers as text."""
    if mapping is None:
        return []
    return [
        (name, value if isinstance(value, str | bytes) else str(value))
        for name, value in mapping.items()
    ]


def is_public_bundle(path: str) -> bool:
    """Whether this file of certificate authorities is a library's or the system's."""
    return realpath(path) in _public_bundles()


def called_by(module: str) -> bool:
    """Whether code of `module` is on the call stack."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__") == module:
            return True
        frame = frame.f_back
    return False


def note_real_call(why: object) -> None:
    """Count a request of a slot that the library makes itself."""
    job, waiter = tls.job, tls.waiter
    if job is not None and waiter is not None:
        waiter.wait_in_place(
            job, _RealCall(_source.application_line()), "unsupported", f"the real call for {why}"
        )


class _RealCall(Suspend):
    """What the library does itself meanwhile; the gateway is only told that the slot is held."""

    __slots__ = ()

    flags = FLAG_LOCAL

    def encode(self, *, limit: int, hold: Mapping[str, str] | None = None) -> tuple[bytes, bytes]:
        return json.dumps({"hold": hold}).encode(), b""

    def decode(self, frame: Frame, file: BinaryIO | None) -> None:
        raise WireError("kind", f"{frame!r} for a call that the gateway does not make")

    def outside(self, stepped: Coroutine[Any, Any, Any] | None) -> None:
        """The library does it."""


async def _awaited(thing: Thing[T]) -> T:
    return await thing


def _or_unsupported(error: FetchError) -> Exception:
    """The error, unless the library can do better.

    Only what has not left this process may be left to it. A response that is too large has been
    chosen by its origin, which must not be able to have a request made past the policy.
    """
    if isinstance(error, TooLarge) and error.phase == "send":
        return Unsupported("a request body larger than that of a plan may be")
    return error


def _same_host(host: str, url: str) -> bool:
    scheme, _, rest = url.partition("://")
    netloc = rest.partition("/")[0].partition("?")[0]
    port = ":443" if scheme == "https" else ":80"
    return host.strip().lower().removesuffix(port) == netloc.lower().removesuffix(port)


@cache
def _public_bundles() -> frozenset[str]:
    found = [realpath(path) for path in _SYSTEM_BUNDLES]
    for package, file in _BUNDLES:
        spec = find_spec(package)
        if spec is not None and spec.origin is not None:
            found.append(realpath(join(dirname(spec.origin), file)))
    return frozenset(found)
