"""Answers that another server gives: `layby.stream`.

In a slot the view's answer has, where a body would be, a `Handover`. When that reaches
the slot unchanged, the gateway makes the fetch and passes its response on, and the slot is
free; what is to be done at the end comes back as a job of its own. Where a middleware
wanted to see the body, the fetch is waited for in place; outside layby it is made here and
read as it comes.
"""

from __future__ import annotations

import asyncio
import http.client
import inspect
import json as jsonlib
import os
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable, Iterator
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

from layby import _direct, _drive, _exceptions, _outside, _plan, _urls
from layby._direct import Failure
from layby._exceptions import Cancelled, Error, NotInASlot
from layby._headers import HOP_BY_HOP
from layby._job import Job, log_failure, tls
from layby._plan import Fetch
from layby._response import Response
from layby._wire import RELAY, Frame, WireError, encode

Ended = Literal["complete", "client_gone", "origin_failed"]
OnDone = Callable[["Captured"], "Awaitable[object] | object"]
Headers = list[tuple[str, str]]

# What the gateway keeps at most, and so the default: the end of an LLM's answer says what
# it cost, and long ones are some 100 KiB of events.
MAX_CAPTURE = 1 << 20

# Said to middleware that compresses; not sent on.
UNCOMPRESSED: Headers = [("Content-Encoding", "identity")]


@dataclass(frozen=True, slots=True)
class Captured:
    """What became of a streamed answer."""

    status: int | None
    """The origin's status; None if it gave none."""

    body: bytes
    """The first bytes of its body: as many as `capture` allows."""

    truncated: bool
    """Whether the body was longer than that."""

    ended: Ended
    """`complete`; `client_gone`: the client left before the end; `origin_failed`: the origin
    could not be reached, or did not send all of it."""


class Relay:
    """One answer that is to be another server's."""

    def __init__(self, fetch: Fetch, on_done: OnDone | None, capture: int) -> None:
        self.fetch = fetch
        self.on_done = on_done
        self.capture = capture
        # What the view sees, `on_done` shall see: language, current user, trace.
        self._context = copy_context()

    def __repr__(self) -> str:
        return f"<Relay of {self.fetch.method} {_urls.masked(self.fetch.url)}>"

    @property
    def begun(self) -> bool:
        """Whether the fetch has been made, or is under way, in some other way."""
        return self.fetch._state is not _plan._State.FRESH

    def begin(self, job: Job, headers: Headers) -> bytes:
        """The RELAY frame, to be sent at once: its end may come back as soon as it is out.

        `headers` are those of the answer whose place it takes.
        """
        body = _plan._Body(sys.maxsize)
        said: dict[str, Any] = self.fetch._encode(body)
        own = [
            (name, value)
            for name, value in headers
            if name.lower() != "content-length" and (name, value) not in UNCOMPRESSED
        ]
        if own:
            said["headers"] = own
        if self.on_done is not None:
            said["capture"] = self.capture
            said["resume"] = True
            _waiting[job.request] = Done(self, self.on_done, job)
        self.fetch._state = _plan._State.DROPPED
        head = jsonlib.dumps(said, separators=(",", ":")).encode("ascii")
        return encode(
            RELAY, request=job.request, epoch=job.epoch, head=head, body=b"".join(body.parts)
        )

    def forget(self, job: Job) -> None:
        """The gateway never got it."""
        _waiting.pop(job.request, None)

    def finish(self, captured: Captured) -> None:
        """Call `on_done`, once; what it awaits waits in place."""
        on_done, self.on_done = self.on_done, None
        if on_done is not None:
            self._context.run(_drive.drive, _call(on_done, captured))


async def _call(on_done: OnDone, captured: Captured) -> None:
    result = on_done(captured)
    if inspect.isawaitable(result):
        await result


async def _call_and_log(on_done: OnDone, captured: Captured, job: Job) -> None:
    try:
        await _call(on_done, captured)
    except Exception as error:  # noqa: BLE001 - nobody else is left to be told
        log_failure(job, error, "on_done of layby.stream")


class Handover(bytes):
    """Stands for the body of a relayed answer: whoever sends it, sends a RELAY instead."""

    relay: Relay


class Done:
    """What to do at the end of a relay."""

    def __init__(self, relay: Relay, on_done: OnDone, job: Job) -> None:
        # The request is over, its end is a job of its own: with the same name, but nothing
        # of what may still be closing elsewhere. Unlike other branches it may park.
        self.job = job.branch(relay._context, job.slot)
        self.job.epoch += 1
        self.job.inline.clear()
        self._on_done = on_done

    def begin(self, frame: Frame, file: BinaryIO | None) -> Coroutine[Any, Any, None]:
        """What is to be run, given how it ended. Raises WireError for what is no end."""
        return _call_and_log(self._on_done, _decode(frame, file), self.job)


# By request id. Written and read by all slots of the process; each use is one operation of
# the dict, and so atomic.
_waiting: dict[int, Done] = {}


def take(frame: Frame) -> Done | None:
    """What to do with a RESUME, if it is the end of a relay."""
    done = _waiting.get(frame.request)
    if done is None or done.job.epoch != frame.epoch:
        return None
    return _waiting.pop(frame.request, None)


def job_after(job: Job) -> Job | None:
    """The job that is still to come for a request that has just been answered by a relay."""
    done = _waiting.get(job.request)
    return done.job if done is not None and done.job.epoch == job.epoch + 1 else None


def _decode(frame: Frame, file: BinaryIO | None) -> Captured:
    try:
        said = jsonlib.loads(frame.head)["relay"]
        offset, length = said["body"]
        if file is None:
            body = frame.body[offset : offset + length]
        else:
            body = os.pread(file.fileno(), length, offset)
        if len(body) != length or said["ended"] not in ("complete", "client_gone", "origin_failed"):
            raise ValueError(said)
        return Captured(said["status"], body, bool(said["truncated"]), said["ended"])
    except (ValueError, KeyError, TypeError) as error:
        raise WireError("head", f"{frame!r} with no end of a relay: {error!r}") from error
    finally:
        if file is not None:
            file.close()


class HandedOver(Iterator[bytes]):
    """The body in a slot: a `Handover`, and the body itself for whoever asks for more."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self._parts: Generator[bytes, None, None] | None = None

    def __next__(self) -> bytes:
        if self._parts is None:
            self._parts = self._in_place()
            handover = Handover()
            handover.relay = self._relay
            return handover
        return next(self._parts)

    def close(self) -> None:
        """The answer is over."""
        if self._parts is not None:
            self._parts.close()

    def _in_place(self) -> Generator[bytes, None, None]:
        relay = self._relay
        ended: Ended = "origin_failed"
        status: int | None = None
        body = b""
        try:
            response = relay.fetch.result()
            status, body = response.status_code, response.content
            if status != 200:
                raise Error(
                    f"{relay!r} got status {status}, which cannot be passed on: a middleware"
                    " took the body of the answer apart"
                )
            ended = "client_gone"
            yield body
            ended = "complete"
        except Cancelled:
            ended = "client_gone"
            raise
        finally:
            captured, cut = body[: relay.capture], len(body) > relay.capture
            relay.finish(Captured(status, captured, cut, ended))


class Direct(Iterator[bytes]):
    """The body outside layby, read from the origin as it comes."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self._captured = b""
        self._truncated = False
        self._ended: Ended | None = None
        fetch = relay.fetch
        opened = _open(fetch)
        self._status: int | None = None
        self._opened: _direct.Stream | None = None
        self._chunks: Iterator[bytes]
        if isinstance(opened, Failure):
            self.status = 504 if opened.kind == "timeout" else 502
            text = f"{opened.message}\n".encode()
            self.headers: Headers = [
                ("Content-Type", "text/plain; charset=utf-8"),
                ("Content-Length", str(len(text))),
            ]
            self._chunks = iter((text,))
        else:
            self._opened = opened
            self.status = self._status = opened.status
            self.headers = [
                (name, value) for name, value in opened.headers if name.lower() not in HOP_BY_HOP
            ]
            self._chunks = opened.chunks

    def __next__(self) -> bytes:
        try:
            chunk = next(self._chunks)
        except StopIteration:
            self._end("complete" if self._opened is not None else "origin_failed")
            raise
        except BaseException:
            self._end("origin_failed")
            raise
        if self._opened is not None:
            room = self._relay.capture - len(self._captured)
            self._captured += chunk[:room]
            self._truncated = self._truncated or len(chunk) > room
        return chunk

    def close(self) -> None:
        """The answer is over, as far as the server is concerned."""
        self._end("client_gone" if self._opened is not None else "origin_failed")

    def _end(self, ended: Ended) -> None:
        if self._ended is not None:
            return
        self._ended = ended
        if self._opened is not None:
            self._opened.close()
        self._relay.finish(Captured(self._status, self._captured, self._truncated, ended))


def _open(fetch: Fetch) -> _direct.Stream | Failure:
    if _plan.stand_in is not None:
        # layby.testing: whole at once.
        root = fetch._root()
        root._used = True
        [outcome] = _plan.stand_in(root)
        if not isinstance(outcome, Response):
            assert isinstance(outcome, Failure)
            return outcome
        pairs, chunks = outcome.headers.multi_items(), iter((outcome._body,))
        reason = outcome.reason_phrase
        return _direct.Stream(outcome.status_code, reason, pairs, chunks, lambda: None)
    _plan.refuse_helper_threads()
    deadline = time.monotonic() + (fetch.timeout or _outside.DEFAULT_TIMEOUT)
    return _direct.Exchange(fetch.request, fetch.follow_redirects, deadline).open()


def stream(fetch: Fetch, *, on_done: OnDone | None = None, capture: int = MAX_CAPTURE) -> Any:
    """An answer for a view to return: what the origin of `fetch` answers, passed on as it comes.

        return layby.stream(layby.post(url, json=prompt), on_done=save_usage)

    The gateway makes the fetch and holds no slot while it streams. Status and headers are
    the origin's; headers that the view or a middleware set on the returned object take
    the place of those with the same name. The timeout of the fetch runs to the head of
    the response.

    `on_done(captured)` is called in a slot once the stream has ended in whatever way, at
    most once, with a `Captured`: the first `capture` bytes of the body, and how it ended. It
    may block, and may be an `async def`; it sees the context variables of the view.

    The returned object is a response of the framework at hand: Django's
    `StreamingHttpResponse`, Flask's, else a WSGI application. Outside layby the fetch is
    made in place, and its head waited for here.

    Raises `TooLarge` when the body of the fetch is too large for the gateway, and `NotInASlot`
    on an event loop outside of slots, which it would block.
    """
    if not isinstance(fetch, Fetch):
        raise TypeError(f"stream takes a fetch, not {type(fetch).__name__!r}")
    if fetch._state is not _plan._State.FRESH:
        if fetch._error is not None:
            fetch._used = True
            raise fetch._error
        raise Error(f"{fetch!r} cannot be waited for again")
    fetch._used = True
    if not 0 <= capture <= MAX_CAPTURE:
        raise ValueError(f"capture must be between 0 and {MAX_CAPTURE}, not {capture}")
    relay = Relay(fetch, on_done, capture)
    waiter = tls.waiter
    if tls.job is None or waiter is None:
        if asyncio._get_running_loop() is not None:
            raise NotInASlot(
                "layby.stream would block the running event loop: call it outside of"
                " `async with layby.io`"
            )
        direct = Direct(relay)
        fetch._state = _plan._State.DROPPED
        return _response(direct.status, direct.headers, direct)
    if len(fetch.content) > waiter.max_plan:
        raise _exceptions.TooLarge(
            f"its body has more than {waiter.max_plan} bytes",
            method=fetch.method,
            url=_urls.masked(fetch.url),
            phase="send",
        )
    return _response(200, list(UNCOMPRESSED), HandedOver(relay))


def _response(status: int, headers: Headers, parts: HandedOver | Direct) -> Any:
    flask = sys.modules.get("flask")
    if flask is not None and flask.has_request_context():
        response = flask.current_app.response_class(parts, status=status, direct_passthrough=True)
        response.headers.clear()
        response.headers.extend(headers)
        return response
    conf = sys.modules.get("django.conf")
    if conf is not None and conf.settings.configured:
        from layby.django._stream import Streamed

        return Streamed(status, headers, parts)
    return _Wsgi(status, headers, parts)


class _Wsgi:
    """A WSGI application that gives this one answer."""

    def __init__(self, status: int, headers: Headers, parts: Iterable[bytes]) -> None:
        self._status = f"{status} {http.client.responses.get(status, '')}"
        self._headers = headers
        self._parts = parts

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response(self._status, self._headers)
        return self._parts
