"""Everything that layby raises.

    BaseException
    ├── Cancelled               the client is gone; the request is being ended
    └── Exception
        └── Error
            ├── FetchError          a fetch has no usable response
            │   ├── ConnectError    no connection to the origin
            │   ├── Timeout         its time, or its gather's, was over
            │   ├── Refused         not allowed by the gateway's outbound policy
            │   ├── TooLarge        the response or the request body passes a bound
            │   └── StatusError     raise_for_status() on anything but a 2xx
            ├── ParkRefused         strict mode, or parallel(): parking is not safe here
            ├── BodyNotReady        the body was read before it was there; also an OSError
            ├── NotInASlot          a wait where no slot is, or under a running event loop
            └── AsgirefUnsupported  coroutine mode cannot work with this asgiref

`Cancelled` is a BaseException, because code that catches Exception (Django above
all) must not take the end of a request for a failure of the view.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from layby._response import Response

Phase = Literal["url", "dns", "connect", "send", "head", "body", "redirect", "join"]


class Cancelled(BaseException):
    """The client of this request has left, so the request is being ended.

    Raised where the request waits. Let it pass: `finally` blocks run as usual, and
    whatever the application answers is discarded.
    """


class Error(Exception):
    """Base of all errors of layby."""


class FetchError(Error):
    """A fetch that has no usable response; raised as such for resets and garbage.

    `method` and `url` name the fetch, with secrets in the URL masked; `phase` says how
    far it came: url, dns, connect, send, head, body, redirect or join.
    """

    def __init__(self, message: str, *, method: str, url: str, phase: str) -> None:
        super().__init__(message)
        self.message = message
        self.method = method
        self.url = url
        self.phase = phase

    def __str__(self) -> str:
        return f"{self.method} {self.url}: {self.message} (in phase {self.phase})"

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.message, self.method, self.url, self.phase)


class ConnectError(FetchError):
    """No connection to the origin: its name does not resolve, or nobody accepts."""


class Timeout(FetchError):
    """The fetch's own timeout was over, or (phase "join") that of its gather."""


class Refused(FetchError):
    """The gateway's outbound policy does not allow this address."""


class TooLarge(FetchError):
    """The response passes `[outbound] max_response`, or the request bodies the plan's bound."""


class StatusError(FetchError):
    """`raise_for_status()` met another status than 2xx. `response` is the whole response."""

    def __init__(self, message: str, *, method: str, url: str, response: Response) -> None:
        super().__init__(message, method=method, url=url, phase="head")
        self.response = response

    def __str__(self) -> str:
        return f"{self.method} {self.url}: {self.message}"

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild_status, (self.message, self.method, self.url, self.response)


class ParkRefused(Error):
    """Strict mode (LAYBY_STRICT=1): this await would park where that is not safe.

    Outside strict mode the request waits in place instead. Only `layby.parallel()` in an open
    transaction is refused in every mode.
    """


class BodyNotReady(Error, OSError):
    """A body was read before it was there: on a route with `body = "lazy"`.

    `await layby.body_ready(request)` or `await layby.read_uploaded_file(request, name)`
    first. An OSError, because that is what code expects of a body that cannot be read.
    """


class NotInASlot(Error):
    """This cannot be waited for here.

    `.result()` would block a running event loop: use `await` there. Or, in a worker, this is a
    thread of the application's own: its fetches would go around the gateway. Gather them in
    the view instead; transports make the library's own request there.
    """


class AsgirefUnsupported(Error):
    """The installed asgiref cannot carry request state from one thread to another."""


def _rebuild(kind: type[FetchError], message: str, method: str, url: str, phase: str) -> FetchError:
    return kind(message, method=method, url=url, phase=phase)


def _rebuild_status(message: str, method: str, url: str, response: Response) -> StatusError:
    return StatusError(message, method=method, url=url, response=response)
