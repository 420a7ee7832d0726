"""Things to wait for: fetches, sleeps and gathers of them.

A thing is lazy and ends once: its first await (or `.result()`, or gather) has it run,
every later one gives the same result or raises the same error. Here is decided what
a gather's outcomes mean to the application, and the JSON form of plans and results
(docs/protocol.md). Who runs a plan is decided by whoever steps the coroutine.
"""

from __future__ import annotations

import asyncio
import json as jsonlib
import math
import os
import threading
import warnings
from collections.abc import Callable, Coroutine, Generator, Mapping
from enum import Enum
from typing import Any, BinaryIO, Generic, Literal, TypeAlias, TypeVar

from layby import _drive, _exceptions, _job, _loop, _request, _ride, _source, _urls, _wire
from layby._direct import Failure
from layby._exceptions import Error, FetchError, NotInASlot
from layby._job import Suspend, tls
from layby._request import Content, Data, HeaderTypes
from layby._response import Response
from layby._urls import Params
from layby._wire import Frame, WireError

T_co = TypeVar("T_co", covariant=True)

Join = Literal["all", "any", "first_ok"] | int


class UnusedWarning(UserWarning):
    """A fetch, sleep or gather was made and never used, so it never ran."""


# What became of a thing: a Failure or its value, True for one that had ended before
# this plan, None for one that was not needed.
Outcome: TypeAlias = "Response | Failure | float | bool | list[Outcome] | None"

_ERRORS: Mapping[str, type[FetchError]] = {
    "connect": _exceptions.ConnectError,
    "timeout": _exceptions.Timeout,
    "refused": _exceptions.Refused,
    "too_large": _exceptions.TooLarge,
    "failed": FetchError,
}


_SHAPE = "the results do not have the shape of the plan"


class _State(Enum):
    FRESH = "not started"
    """→ RUNNING, ENDED (a gather of ended things)"""
    RUNNING = "under way"
    """→ ENDED, DROPPED"""
    ENDED = "ended"
    DROPPED = "dropped"
    """No join needed it, or the request ended first."""


# The gathers that something stands in, outermost first.
_Path: TypeAlias = "tuple[Gather, ...]"


class Thing(Generic[T_co]):
    """Something to wait for: await it, ask for its `.result()`, or gather it."""

    __slots__ = ("__weakref__", "_error", "_state", "_used", "_value")

    def __init__(self) -> None:
        self._state = _State.FRESH
        self._value: Any = None
        self._error: BaseException | None = None
        self._used = False

    def __await__(self) -> Generator[Suspend, list[Outcome], T_co]:
        if self._state is not _State.ENDED:
            if _loop.is_running_here():
                self._used = True  # The error tells enough.
                raise Error(_ride.INSIDE_IO)
            root = self._root()
            if root._begin():
                try:
                    job, waiter = tls.job, tls.waiter
                    if job is None or waiter is None:
                        outcomes = run_outside(root)
                    elif asyncio._get_running_loop() is not None:
                        # Inside an asyncio.run() of a view: that loop steps us, and it
                        # knows nothing of parking.
                        wait = PlanWait(root, _source.application_line())
                        outcomes = waiter.wait_in_place(job, wait, "unsupported")
                    else:
                        outcomes = yield PlanWait(root, _source.application_line())
                except BaseException:
                    root._drop()
                    raise
                root._settle(outcomes)
        return self._outcome()

    def result(self) -> T_co:
        """Wait for it, and return its result.

        Parks in greenlet mode, else holds the slot; outside layby it is done now. Raises
        `NotInASlot` under a running event loop, which this would block, and on threads of
        a worker that are no slots.
        """
        if self._state is not _State.ENDED:
            if asyncio._get_running_loop() is not None:
                self._used = True  # This error tells enough.
                raise NotInASlot(".result() would block the running event loop: await it instead")
            root = self._root()
            if root._begin():
                try:
                    outcomes = _drive.wait(PlanWait(root, _source.application_line()))
                except BaseException:
                    root._drop()
                    raise
                root._settle(outcomes)
        return self._outcome()

    @property
    def ended(self) -> bool:
        """Whether its result is there."""
        return self._state is _State.ENDED

    def __del__(self) -> None:
        # A subclass's __init__ may have failed before ours ran.
        if not getattr(self, "_used", True):
            warnings.warn(f"{self!r} was never used", UnusedWarning, stacklevel=2, source=self)

    def _root(self) -> Gather:
        return Gather((self,), "all", None, False)

    def _outcome(self) -> T_co:
        self._used = True
        if self._error is not None:
            # The same error each time, but not with the traceback of all the times before.
            raise self._error.with_traceback(None)
        value: T_co = self._value
        return value

    def _start(self, started: dict[Thing[Any], _Path], path: _Path) -> None:
        """Mark it as under way and add it to `started`, unless it has ended already."""
        self._used = True
        if self._state is _State.FRESH:
            self._state = _State.RUNNING
            started[self] = path
        elif self._state is not _State.ENDED:
            raise Error(f"{self!r} cannot be waited for again")

    def _drop(self) -> None:
        if self._state is _State.RUNNING:
            self._state = _State.DROPPED

    def _settle(self, outcome: Any) -> None:
        """Take what became of it."""
        if self._state is _State.ENDED:
            return
        if outcome is None:
            self._drop()
            return
        self._state = _State.ENDED
        if isinstance(outcome, Failure):
            self._error = _ERRORS[outcome.kind](
                outcome.message, method=self._method(), url=outcome.url, phase=outcome.phase
            )
        else:
            self._take(outcome)

    def _take(self, outcome: Any) -> None:
        self._value = outcome

    def _method(self) -> str:
        return type(self).__name__.lower()

    def _ok(self) -> bool:
        """Whether it counts as ok for the gather around it."""
        raise NotImplementedError

    def _meets_first_ok(self) -> bool:
        """Whether it is what `first_ok` waits for."""
        return self._ok()

    def _encode(self, body: _Body) -> dict[str, Any]:
        """Its form in a plan."""
        raise NotImplementedError


class Fetch(Thing[Response]):
    """One HTTP request, made when it is first waited for."""

    __slots__ = ("follow_redirects", "request", "timeout")

    def __init__(
        self, request: _request.Request, timeout: float | None, follow_redirects: bool
    ) -> None:
        super().__init__()
        self.request = request
        self.timeout = timeout
        self.follow_redirects = follow_redirects

    def __repr__(self) -> str:
        return f"<Fetch {self.method} {_urls.masked(self.url)} {self._state.value}>"

    @property
    def method(self) -> str:
        """The method, in upper case."""
        return self.request.method

    @property
    def url(self) -> str:
        """The URL as it will be asked for, secrets included."""
        return self.request.url

    @property
    def headers(self) -> list[tuple[str, str]]:
        """The headers that will be sent, without Host and Content-Length."""
        return self.request.headers

    @property
    def content(self) -> bytes:
        """The body that will be sent."""
        return self.request.body

    def _take(self, outcome: Response) -> None:
        if not isinstance(outcome, Response):
            raise Error(_SHAPE)
        outcome._method = self.method
        self._value = outcome

    def _settle(self, outcome: Any) -> None:
        if isinstance(outcome, Failure) and not outcome.url:
            outcome = Failure(outcome.kind, outcome.phase, outcome.message, _urls.masked(self.url))
        super()._settle(outcome)

    def _method(self) -> str:
        return self.method

    def _ok(self) -> bool:
        return self._error is None and self._value.is_success is True

    def _encode(self, body: _Body) -> dict[str, Any]:
        method, url, headers, content = self.request
        fetch: dict[str, Any] = {"method": method, "url": url, "headers": headers}
        if self.timeout is not None:
            fetch["timeout"] = self.timeout
        if self.follow_redirects:
            fetch["follow"] = True
        if content:
            fetch["body"] = (body.length, len(content))
            body.parts.append(content)
            body.length += len(content)
            if body.length > body.limit:
                raise _exceptions.TooLarge(
                    f"its body makes those of the plan more than {body.limit} bytes",
                    method=self.method,
                    url=_urls.masked(self.url),
                    phase="send",
                )
        return {"fetch": fetch}


class Sleep(Thing[float]):
    """A pause. Its result is the seconds slept."""

    __slots__ = ("seconds",)

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def __repr__(self) -> str:
        return f"<Sleep {self.seconds} s {self._state.value}>"

    def _take(self, outcome: float) -> None:
        if not isinstance(outcome, float):
            raise Error(_SHAPE)
        self._value = outcome

    def _ok(self) -> bool:
        return self._error is None

    def _meets_first_ok(self) -> bool:
        return False  # It is about responses.

    def _encode(self, body: _Body) -> dict[str, Any]:
        return {"sleep": self.seconds}


class Gather(Thing[list[Any]]):
    """Things run side by side; its result is a list, in the order they were given."""

    __slots__ = ("_given", "_shared", "_won", "join", "return_exceptions", "things", "timeout")

    def __init__(
        self,
        given: tuple[Thing[Any], ...],
        join: Join,
        timeout: float | None,
        return_exceptions: bool,
    ) -> None:
        super().__init__()
        self._given = given
        # A thing runs once, so given twice it is in the plan once.
        self.things = given if len(given) < 2 else tuple(dict.fromkeys(given))
        for thing in given:
            thing._used = True  # From here on it is this gather that may be left unused.
        self.join = join
        self.timeout = timeout
        self.return_exceptions = return_exceptions
        self._won = False
        # Those that this plan runs at an earlier place, whose result is there before ours.
        self._shared: tuple[Thing[Any], ...] = ()

    def __repr__(self) -> str:
        return f"<Gather of {len(self._given)}, join {self.join!r}, {self._state.value}>"

    def fetches(self) -> bool:
        """Whether a fetch of it is still to be made."""
        return any(
            not thing.ended
            and (thing.fetches() if isinstance(thing, Gather) else isinstance(thing, Fetch))
            for thing in self.things
        )

    def _root(self) -> Gather:
        return self

    def _begin(self) -> bool:
        """Start whatever is to be run; False when nothing is, and it has ended."""
        self._used = True
        if self._end_early():
            return False
        started: dict[Thing[Any], _Path] = {}
        try:
            self._start(started, ())
        except Error:
            for thing in started:
                thing._state = _State.FRESH
            raise
        return True

    def _start(self, started: dict[Thing[Any], _Path], path: _Path) -> None:
        super()._start(started, path)
        if self._state is not _State.RUNNING:
            return
        inside = (*path, self)
        shared = []
        for thing in self.things:
            if thing in started:
                _refuse_to_share(thing, started[thing], inside)
                shared.append(thing)
            else:
                thing._start(started, inside)
        self._shared = tuple(shared)

    def _end_early(self) -> bool:
        """End now if things that ended before meet the join already: nothing runs then."""
        if self._state is _State.FRESH:
            for thing in self.things:
                if isinstance(thing, Gather):
                    thing._end_early()
            ended = [thing for thing in self.things if thing._state is _State.ENDED]
            if len(ended) < len(self.things):
                match self.join:
                    case "all":
                        return False
                    case "any":
                        ended = ended[:1]
                    case "first_ok":
                        ended = [thing for thing in ended if thing._meets_first_ok()][:1]
                    case n:
                        ended = ended[:n] if len(ended) >= n else []
                if not ended:
                    return False
            self._state = _State.ENDED
            self._conclude({id(thing) for thing in ended})
        return self._state is _State.ENDED

    def _drop(self) -> None:
        super()._drop()
        for thing in self.things:
            thing._drop()

    def _take(self, outcome: list[Outcome]) -> None:
        if not isinstance(outcome, list) or len(outcome) != len(self.things):
            raise Error(_SHAPE)
        for thing, result in zip(self.things, outcome, strict=True):
            thing._settle(result)
        ended = [t for t, result in zip(self.things, outcome, strict=True) if result is not None]
        if len(ended) < self._least():
            raise Error("the results do not meet the join of the plan")
        self._conclude({id(thing) for thing in ended})

    def _least(self) -> int:
        """How many of its things have ended at least when its join is met."""
        match self.join:
            case "all":
                return len(self.things)
            case "any" | "first_ok":
                return 1
            case n:
                return n

    def _settle(self, outcome: Any) -> None:
        if isinstance(outcome, Failure):
            # Its time was over as a whole; so was that of all that is in it.
            for thing in self.things:
                thing._settle(outcome)
        super()._settle(outcome)

    def _conclude(self, needed: set[int]) -> None:
        """Make the result from what ended; `needed` holds the ids of those."""
        winner = None
        if self.join == "first_ok":
            winner = next((t for t in self.things if id(t) in needed and t._meets_first_ok()), None)
            if winner is not None:
                needed = {id(winner)}
        self._won = winner is not None or all(t._ok() for t in self.things if id(t) in needed)
        values: list[Any] = []
        for thing in self._given:
            if id(thing) not in needed:
                values.append(None)
            elif thing._error is None:
                values.append(thing._value)
            else:
                if self._error is None and not self.return_exceptions:
                    self._error = thing._error
                values.append(thing._error)
        self._value = values

    def _ok(self) -> bool:
        return self._won and self._error is None

    def _encode(self, body: _Body) -> dict[str, Any]:
        things = []
        for thing in self.things:
            if thing in self._shared:
                things.append({"done": True})
            elif thing._state is _State.ENDED:
                ok = thing._meets_first_ok() if self.join == "first_ok" else thing._ok()
                things.append({"done": ok})
            else:
                things.append(thing._encode(body))
        plan: dict[str, Any] = {"gather": things}
        if self.join != "all":
            plan["join"] = self.join
        if self.timeout is not None:
            plan["timeout"] = self.timeout
        return plan


def _refuse_to_share(thing: Thing[Any], first: _Path, second: _Path) -> None:
    """Raise `Error` unless the gathers at both paths wait for `thing` until it has ended.

    A plan has it once, at the first of them.
    """
    common = sum(1 for one, other in zip(first, second, strict=False) if one is other)
    around, *inner = first[common - 1], *first[common:], *second[common:]
    if around.join != "all" or any(g.join != "all" or g.timeout is not None for g in inner):
        raise Error(
            f"{thing!r} is in two gathers at a time, and one of them has a join or a timeout of"
            " its own: await it before, or give each a fetch"
        )


class _Body:
    """The request bodies of a plan, one after the other."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.parts: list[bytes] = []
        self.length = 0


class PlanWait(Suspend):
    """Waits for a gather that the gateway runs; gives the outcomes of its things."""

    __slots__ = ("gather",)

    def __init__(self, gather: Gather, source: str) -> None:
        super().__init__(source)
        self.gather = gather

    def encode(self, *, limit: int, hold: Mapping[str, str] | None = None) -> tuple[bytes, bytes]:
        """The plan. Raises `TooLarge` when its bodies pass `limit` bytes."""
        return encode(self.gather, limit=limit, hold=hold)

    def decode(self, frame: Frame, file: BinaryIO | None) -> list[Outcome]:
        """The outcomes that the results say."""

        def read_file(offset: int, length: int) -> bytes:
            assert file is not None
            data = os.pread(file.fileno(), length, offset)
            while len(data) < length:
                more = os.pread(file.fileno(), length - len(data), offset + len(data))
                if not more:
                    raise ValueError("the file of the results is too short")
                data += more
            return data

        def read_frame(offset: int, length: int) -> bytes:
            data = frame.body[offset : offset + length]
            if len(data) != length:
                raise ValueError("the body of the results is too short")
            return data

        try:
            return decode(frame.head, read_frame if file is None else read_file)
        except (ValueError, KeyError, TypeError) as error:
            raise WireError("head", f"{frame!r} with results that are none: {error!r}") from error
        finally:
            if file is not None:
                file.close()

    def outside(self, stepped: Coroutine[Any, Any, Any] | None) -> list[Outcome]:
        """The outcomes, by fetches of our own."""
        return run_outside(self.gather)


# Answers the plans that no gateway is there for, if set: layby.testing does.
stand_in: Callable[[Gather], list[Outcome]] | None = None


def run_outside(root: Gather) -> list[Outcome]:
    """Run a plan that no gateway is there for.

    Raises `NotInASlot` on a thread that the application started in a worker: its fetches
    would go around the gateway, its policy and its metrics.
    """
    if stand_in is not None:
        return stand_in(root)
    refuse_helper_threads()
    # Here and not above: it is built on the things of this module.
    from layby import _outside

    return _outside.run(root)


def refuse_helper_threads() -> None:
    """Raise `NotInASlot` on a thread that the application started in a worker."""
    if _job.in_worker and threading.current_thread() is not threading.main_thread():
        raise NotInASlot(
            "this thread is no slot: wait in the view itself, and use gather for what is to run"
            " side by side"
        )


def encode(
    root: Gather, *, limit: int, hold: Mapping[str, str] | None = None
) -> tuple[bytes, bytes]:
    """A plan's head and body. Raises `TooLarge` when the body passes `limit` bytes."""
    body = _Body(limit)
    plan = root._encode(body)
    if hold is not None:
        plan["hold"] = hold
    head = jsonlib.dumps(plan, separators=(",", ":")).encode("ascii")
    if len(head) > _wire.MAX_HEAD:
        raise Error(f"a plan of {len(head)} bytes, more than {_wire.MAX_HEAD}")
    return head, b"".join(body.parts)


def decode(head: bytes, read: Callable[[int, int], bytes]) -> list[Outcome]:
    """The outcomes in the head of a RESUME or RESULTS; `read(offset, length)` its body.

    Raises ValueError, KeyError or TypeError when that is not what the protocol says.
    """
    entries = jsonlib.loads(head)["results"]
    return [_decode_entry(entry, read) for entry in entries]


def _decode_entry(entry: Any, read: Callable[[int, int], bytes]) -> Outcome:
    if entry is None:
        return None
    if "status" in entry:
        offset, length = entry["body"]
        return Response(
            entry["status"],
            reason_phrase=entry["reason"],
            headers=[(name, value) for name, value in entry["headers"]],
            content=read(offset, length) if length else b"",
            url=entry["url"],
            seconds=entry["seconds"],
        )
    if "error" in entry:
        if entry["error"] not in _ERRORS:
            raise ValueError(f"unknown error {entry['error']!r}")
        return Failure(entry["error"], entry["phase"], entry["message"], entry.get("url", ""))
    if "results" in entry:
        return [_decode_entry(inner, read) for inner in entry["results"]]
    if "slept" in entry:
        return float(entry["slept"])
    if "done" in entry:
        return True
    raise ValueError(f"unknown result {entry!r}")


def request(
    method: str,
    url: str,
    *,
    params: Params | None = None,
    headers: HeaderTypes | None = None,
    content: Content | None = None,
    data: Data | None = None,
    json: Any = None,
    timeout: float | None = None,
    follow_redirects: bool = False,
) -> Fetch:
    """Make a fetch, to be awaited, gathered, or asked for its `.result()`.

    The arguments are httpx's. `data` is a form; as `str` or `bytes` it is the body as it
    is, like `content`. `timeout` is in seconds, from the start of the fetch to
    its last byte, redirects included; None stands for the gateway's `[outbound]
    timeout` (30 s). The result is a `Response`, whatever its status.

    Awaiting it raises `ConnectError`, `Timeout`, `Refused`, `TooLarge` or `FetchError`.
    """
    built = _request.build(
        method, url, params=params, headers=headers, content=content, data=data, json=json
    )
    fetch = Fetch(built, _positive("timeout", timeout), follow_redirects)
    trouble = _urls.host_trouble(built.url)
    if trouble is not None:
        fetch._settle(Failure("failed", "url", trouble, ""))
    return fetch


def get(
    url: str,
    *,
    params: Params | None = None,
    headers: HeaderTypes | None = None,
    timeout: float | None = None,
    follow_redirects: bool = False,
) -> Fetch:
    """A GET: see `request`."""
    return request(
        "GET", url, params=params, headers=headers, timeout=timeout,
        follow_redirects=follow_redirects,
    )  # fmt: skip


def head(
    url: str,
    *,
    params: Params | None = None,
    headers: HeaderTypes | None = None,
    timeout: float | None = None,
    follow_redirects: bool = False,
) -> Fetch:
    """A HEAD: see `request`."""
    return request(
        "HEAD", url, params=params, headers=headers, timeout=timeout,
        follow_redirects=follow_redirects,
    )  # fmt: skip


def post(
    url: str,
    *,
    params: Params | None = None,
    headers: HeaderTypes | None = None,
    content: Content | None = None,
    data: Data | None = None,
    json: Any = None,
    timeout: float | None = None,
    follow_redirects: bool = False,
) -> Fetch:
    """A POST: see `request`."""
    return request(
        "POST", url, params=params, headers=headers, content=content, data=data, json=json,
        timeout=timeout, follow_redirects=follow_redirects,
    )  # fmt: skip


def put(
    url: str,
    *,
    params: Params | None = None,
    headers: HeaderTypes | None = None,
    content: Content | None = None,
    data: Data | None = None,
    json: Any = None,
    timeout: float | None = None,
    follow_redirects: bool = False,
) -> Fetch:
    """A PUT: see `request`."""
    return request(
        "PUT", url, params=params, headers=headers, content=content, data=data, json=json,
        timeout=timeout, follow_redirects=follow_redirects,
    )  # fmt: skip


def patch(
    url: str,
    *,
    params: Params | None = None,
    headers: HeaderTypes | None = None,
    content: Content | None = None,
    data: Data | None = None,
    json: Any = None,
    timeout: float | None = None,
    follow_redirects: bool = False,
) -> Fetch:
    """A PATCH: see `request`."""
    return request(
        "PATCH", url, params=params, headers=headers, content=content, data=data, json=json,
        timeout=timeout, follow_redirects=follow_redirects,
    )  # fmt: skip


def delete(
    url: str,
    *,
    params: Params | None = None,
    headers: HeaderTypes | None = None,
    content: Content | None = None,
    data: Data | None = None,
    json: Any = None,
    timeout: float | None = None,
    follow_redirects: bool = False,
) -> Fetch:
    """A DELETE: see `request`."""
    return request(
        "DELETE", url, params=params, headers=headers, content=content, data=data, json=json,
        timeout=timeout, follow_redirects=follow_redirects,
    )  # fmt: skip


def sleep(seconds: float) -> Sleep:
    """A pause of `seconds`, without a slot where parking is possible. Gives the seconds slept."""
    if not (isinstance(seconds, int | float) and math.isfinite(seconds) and seconds >= 0):
        raise ValueError(f"seconds must be a finite number and not negative, not {seconds!r}")
    return Sleep(float(seconds))


def gather(
    *things: Thing[Any],
    join: Join = "all",
    timeout: float | None = None,
    return_exceptions: bool = False,
) -> Gather:
    """Fetches, sleeps and gathers side by side, as one thing to wait for.

    `join` says what is waited for: "all" of them, "any" (the first to end), "first_ok"
    (the first response with a 2xx status) or a number n (the first n to end). The
    result is a list in the order of `things`, with None for what was not needed. What
    is not needed is aborted when its method is safe, else runs out, its result dropped.

    The first failure among those waited for is raised, for "all" once all have ended;
    with `return_exceptions` failures stand in the list instead. `first_ok` without any
    2xx raises the first failure if there is one, else gives all the responses. After
    `timeout` seconds what has not ended fails with `Timeout`.
    """
    for thing in things:
        if not isinstance(thing, Thing):
            raise TypeError(
                f"gather takes fetches, sleeps and gathers of layby, not {type(thing).__name__!r}"
            )
    if isinstance(join, str):
        if join not in ("all", "any", "first_ok"):
            raise ValueError(f'join must be "all", "any", "first_ok" or a number, not {join!r}')
    elif isinstance(join, bool) or not isinstance(join, int):
        raise TypeError(f'join must be "all", "any", "first_ok" or a number, not {join!r}')
    elif not 1 <= join <= len(set(things)):
        raise ValueError(f"join={join} of {len(set(things))} different things cannot be met")
    if not things and join != "all":
        raise ValueError(f"join={join!r} of nothing cannot be met")
    return Gather(things, join, _positive("timeout", timeout), return_exceptions)


def _positive(name: str, seconds: float | None) -> float | None:
    if seconds is None:
        return None
    if not (isinstance(seconds, int | float) and math.isfinite(seconds) and seconds > 0):
        raise ValueError(f"{name} must be a finite number of seconds above 0, not {seconds!r}")
    return seconds
