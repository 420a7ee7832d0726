"""The request that a slot is stepping now, and where integrations hook in.

A `Job` is one request for as long as the worker knows it: it stays the same object
over all its parks. Which thread steps it changes; `tls.job` says so, for the thread
that asks. How jobs arrive and where they go is the business of `_slot`.

Integrations (layby.django) append to the registries below at import; they are read
at every park and resume, so their functions must be cheap and must not raise.
"""

from __future__ import annotations

import asyncio
import io
import logging
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextvars import Context
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, BinaryIO, ClassVar, Literal, Protocol

from layby._wire import Frame

if TYPE_CHECKING:
    from layby._answer import Answer
    from layby._calls import Call

log = logging.getLogger("layby")

Reason = Literal["transaction", "cursor", "middleware", "mode", "unsupported"]


class Job:
    """One request, from its first step to its end."""

    __slots__ = (
        "answer",
        "answered",
        "awaited",
        "body",
        "cancelled",
        "context",
        "coroutine",
        "environ",
        "epoch",
        "failure",
        "greenlet",
        "inline",
        "lent",
        "locals",
        "process",
        "request",
        "scratch",
        "shields",
        "slot",
    )

    def __init__(
        self, *, request: int, epoch: int, environ: dict[str, Any], context: Context, slot: int
    ) -> None:
        self.request = request
        # Counts the steps: with the id it tells a late frame from a true one.
        self.epoch = epoch
        self.environ = environ
        # All steps run in this context, whatever thread they are on.
        self.context = context
        # Number of the slot that steps it, or that stepped it last.
        self.slot = slot
        self.coroutine: Coroutine[Any, Any, AppResponse | None] | None = None
        # In greenlet mode, the greenlet that runs it.
        self.greenlet: Any = None
        # It is being ended. From here on it never parks: it waits in place.
        self.cancelled = False
        # Why, when it is not that the client has left: the client still gets an answer.
        self.failure: Exception | None = None
        # The last byte of its answer is out: what it still does is clean up.
        self.answered = False
        # Depth of `with layby.shield()`.
        self.shields = 0
        # Event loops that it is lent to, on threads of their own: see `_asgiref`.
        self.lent = 0
        # The way to ask the gateway for more than a slot's frames can; None in tests.
        self.process: Process | None = None
        # Room for integrations.
        self.scratch: dict[str, Any] = {}
        # Why it cannot park now, innermost last; not empty means: wait in place.
        self.inline: list[Reason] = []
        # What named threading.local objects held for it when it parked, by their names.
        self.locals: dict[str, dict[str, Any]] = {}
        # What it has begun to send, if it can park while sending.
        self.answer: Answer | None = None
        # What it waits for while it is parked.
        self.awaited: Suspend | None = None
        # The request's body when it came as a file, or may still come.
        self.body: IO[bytes] | io.IOBase | None = None

    def branch(self, context: Context, slot: int, *, part: bool = False) -> Job:
        """What stands for this request where something is run on its behalf, beside it.

        As a `part` of what the request does, it changes the request's own state.
        """
        job = Job(
            request=self.request,
            epoch=self.epoch,
            environ=self.environ,
            context=context,
            slot=slot,
        )
        job.process = self.process
        job.shields = self.shields
        # Beside others it cannot park: that would be their request's park too.
        job.inline.append("unsupported")
        job.locals = {name: dict(held) for name, held in self.locals.items()}
        for hook in on_branch:
            hook(self, job, part)
        return job

    def end(self) -> None:
        """The request is over: close what was opened for it."""
        if self.body is not None:
            self.body.close()

    def __repr__(self) -> str:
        state = "cancelled" if self.cancelled else f"slot {self.slot}"
        return f"<Job {self.request}/{self.epoch} {state}>"


class Suspend(ABC):
    """What an awaited thing yields out of the coroutine: "wait for this on my behalf".

    Whoever steps the coroutine sends back in what came of it, or throws. How that is
    waited for is up to the stepper, and all that it needs for it is here: a park (`encode`,
    `prepare`, `parked`, then `decode` or `abandon`), a wait in place (`encode`, and `decode`), or
    no gateway at all (`outside`). The family is closed: `_plan.PlanWait` (a plan, run by the
    gateway), `_local.LocalWait` (something in this process, flag LOCAL) and the
    request's body (flag LAZY).
    """

    __slots__ = ("source",)

    # Of its PARK and HOLD frames: LOCAL, LAZY or 0.
    flags: ClassVar[int] = 0

    def __init__(self, source: str) -> None:
        # The application's line that waits, "file:line".
        self.source = source

    @abstractmethod
    def encode(self, *, limit: int, hold: Mapping[str, str] | None = None) -> tuple[bytes, bytes]:
        """Head and body of its PARK, or with `hold` of its HOLD.

        May raise an `Error`, which is then raised where the application waits.
        """

    @abstractmethod
    def decode(self, frame: Frame, file: BinaryIO | None) -> Any:
        """What a RESUME or RESULTS means to the coroutine. Takes over `file`.

        Raises `WireError` for what is none.
        """

    @abstractmethod
    def outside(self, stepped: Coroutine[Any, Any, Any] | None) -> Any:
        """Do it on this thread, without the gateway, and return what came of it.

        With the flag LOCAL that is also how it is waited for in place. `stepped` is the
        coroutine that yielded this; None for code that just calls.
        """

    def prepare(self, job: Job, stepped: Coroutine[Any, Any, Any] | None) -> None:  # noqa: B027
        """`job` is about to park: note what of it is needed later.

        After PARK it belongs to another thread.
        """

    def parked(self) -> None:  # noqa: B027 - most have nothing to do
        """PARK is out. The request may have been resumed or cancelled by now, elsewhere."""

    def resumed(self) -> None:  # noqa: B027
        """Code on a call stack, and so in a context of its own, goes on after a park."""

    def abandon(self, run: Callable[[Call], None]) -> bool:
        """The parked request is cancelled: end what still runs for it here, and wait for that.

        `run` runs on this slot what that takes to be run on one. False when it will not end:
        then nothing of the request may be run any more.
        """
        return True


class Process(Protocol):
    """What a worker can say on its control connection about a request parked LOCAL.

    Both may be called on any thread, and do nothing once the gateway is gone.
    """

    def want(self, request: int, epoch: int) -> None:
        """It can go on: let it resume."""

    def call(self, request: int, epoch: int, number: int) -> None:
        """It wants a slot for something of its own, known by `number`."""


class Waiter(Protocol):
    """What a slot offers to the code that it is running: waiting in place."""

    max_plan: int
    """Largest body of a plan, or of one fetch for `layby.stream`; in bytes."""

    def wait_in_place(self, job: Job, suspend: Suspend, reason: Reason, detail: str = "") -> Any:
        """Have `suspend` waited for while the slot is held, and return what came of it.

        For one that is LOCAL this only tells the gateway: the caller then does it with
        `suspend.outside`. `detail` says more than `reason` in the log. Raises `Cancelled`
        when the client has left instead.
        """
        ...


class _Tls(threading.local):
    # Class attributes: what a thread that is no slot finds.
    job: Job | None = None
    waiter: Waiter | None = None
    # How code on any call stack waits here, where that need not be in place.
    park: Callable[[Job, Suspend, Coroutine[Any, Any, Any] | None], Any] | None = None
    # How many requests are parked that can only go on on this thread.
    parked: int = 0


tls = _Tls()

# Whether this process is a worker of a gateway.
in_worker = False


def _forget() -> None:
    """A forked child has no slots, and its thread runs no job: that goes on in its parent."""
    global in_worker
    vars(tls).clear()
    in_worker = False


os.register_at_fork(after_in_child=_forget)


def current_job() -> Job | None:
    """The job that this thread is stepping now; None outside slots."""
    return tls.job


def log_failure(job: Job, error: BaseException, what: str = "the application") -> None:
    """Log what escaped from application code, with its traceback."""
    log.error("%s failed: %s", what, named(job.environ), exc_info=error)


def named(environ: Mapping[str, Any]) -> str:
    """Method and path of a request, for a line of the log.

    A path is decoded, and so may hold line breaks and what terminals obey: they are escaped.
    """
    name = f"{environ.get('REQUEST_METHOD')} {environ.get('PATH_INFO')}"
    text = name.encode("latin-1", "replace").decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def in_slot() -> bool:
    """Whether this code is being run by a slot and may block it.

    False under a running event loop, even on a slot's thread: what is awaited there
    belongs to that loop.
    """
    return tls.job is not None and asyncio._get_running_loop() is None


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why a job must not park now. `detail` is for people, and names e.g. the alias."""

    reason: Reason
    detail: str


class AppResponse(Protocol):
    """What a coroutine application returns.

    It may have an attribute `filelike`: something that, read, gives the same bytes as
    iterating. If there is a file on disk in it, the gateway reads that itself. And a method
    `stream`: an asynchronous generator of what to send instead of iterating, which may
    park between its pieces; or None.
    """

    status: str
    """Status line without the version: "200 OK"."""

    headers: list[tuple[str, str]]

    quick_close: bool
    """`close()` is known to be cheap: the worker may call it before the answer is sent,
    and so send the whole answer as one frame."""

    def __iter__(self) -> Iterator[bytes]: ...

    def close(self) -> None: ...


class App(Protocol):
    """An application for coroutine mode: environ in, coroutine of a response out."""

    def __call__(self, environ: dict[str, Any], /) -> Coroutine[Any, Any, AppResponse]: ...


# Each is asked before a park, inside the job's context; the first obstacle decides.
park_checks: list[Callable[[Job], Obstacle | None]] = []

# Asked where no job is, outside layby: what transaction is open on this thread, for people.
transaction_checks: list[Callable[[], str | None]] = []

# Run inside the job's context on the thread that is about to leave it, once the park
# is decided; the coroutine is not running.
on_leave: list[Callable[[Job], None]] = []

# Run inside the job's context on the thread that takes it over, before its coroutine
# goes on; also before a cancelled one is ended.
before_resume: list[Callable[[Job], None]] = []

# Make what is bound to a thread in the current context bound to the current thread. Run
# wherever a context comes to another thread, if only for a while: also on the event loop.
rehomers: list[Callable[[], None]] = []

# Run when a job gets a branch, with both, and whether it is a part of the job: then share
# what is bound to the job, else copy it.
on_branch: list[Callable[[Job, Job, bool], None]] = []

# Run after each call that a slot made for a parked request, with the branch that made it:
# close what it left open. They may raise an `Error`, which the call then ends with.
after_call: list[Callable[[Job], None]] = []

# Run on the slot's own thread, with the slot's number, before its first job.
slot_openers: list[Callable[[int], None]] = []

# Run on the slot's own thread when the slot is retired or the worker exits: close
# database connections. One that raises keeps the slot from saying that it retired.
slot_closers: list[Callable[[], None]] = []
