"""Functions that a waiting request has run on slots: asked for by CALL, run by RUN.

A call begins once at most, and its `done` is told what came of it, from whatever thread.
Where a call may run is decided by where its request waits: parked, on any slot of the
process (`Calls`); in place, on the thread that waits (`PlaceCalls`).
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from contextvars import Context, ContextVar, copy_context
from queue import Empty, SimpleQueue
from typing import Any, Protocol

from layby._exceptions import Cancelled, Error
from layby._job import Job, after_call, rehomers, tls
from layby._parking import Parking

Done = Callable[[Any, BaseException | None], None]

# How many calls of one park the gateway is asked for at a time: the protocol's bound.
_MOST = 1000


class Call:
    """A function to be run once, in a context of its own."""

    __slots__ = ("_done", "_function", "cancelled", "context", "part")

    def __init__(
        self, function: Callable[[], Any], context: Context, done: Done, *, part: bool = False
    ) -> None:
        self._function = function
        self._done = done
        self.context = context
        # The request itself waits for it, and sees what it changes.
        self.part = part
        # Nobody waits for it any more: if it has not begun it is not to.
        self.cancelled = False

    def run(self, settle: Callable[[], None] | None = None) -> None:
        """Run it here. `settle` puts the thread right after it, and may make it fail."""
        value, failure = None, None
        try:
            if not self.cancelled:
                value = self.context.run(self._function)
        except BaseException as error:  # noqa: BLE001 - it belongs to who is told of it
            failure = error
        if settle is not None:
            try:
                settle()
            except Exception as error:  # noqa: BLE001 - likewise
                # What the function itself raised says more, and is probably the cause.
                failure = failure or error
        self._done(value, failure)

    def fail(self, error: BaseException) -> None:
        """It will never run, because of `error`."""
        self._done(None, error)

    def drop(self) -> None:
        """It will never run, because nobody waits for it any more."""
        self.fail(Error("the request went on before this could be run on a slot"))


class Host(Protocol):
    """Where calls go while a request waits."""

    def add(self, call: Call) -> None:
        """Have it run."""
        ...

    def leave(self, then: Callable[[], None]) -> list[Call]:
        """The wait is over: hand back what has not begun, and do `then` once the rest has ended."""
        ...


class Calls:
    """The calls of one park. `ask` asks the gateway for a slot for the call of a number."""

    def __init__(self, ask: Callable[[int], None]) -> None:
        self._ask = ask
        self._lock = threading.Lock()
        # By number: for these the gateway has been asked.
        self._asked: dict[int, Call] = {}
        # Those beyond what it may be asked for at a time.
        self._waiting: deque[Call] = deque()
        self._running = 0
        self._number = 0
        self._then: Callable[[], None] | None = None
        # What is added once the gateway would not listen any more.
        # With what `allow` says, in seconds.
        self._diverted: SimpleQueue[Call | float | None] | None = None

    def add(self, call: Call) -> None:
        """Have it run on some slot."""
        with self._lock:
            if self._diverted is not None:
                self._diverted.put(call)
                return
            self._waiting.append(call)
            numbers = self._number_what_may_be_asked()
        for number in numbers:
            self._ask(number)

    def take(self, number: int) -> Call | None:
        """The call that a RUN is for, now begun; None when it was dropped meanwhile.

        Who takes it says `finished` once it has run.
        """
        with self._lock:
            call = self._asked.pop(number, None)
            if call is None:
                return None
            self._running += 1
        if call.cancelled:
            self.finished()
            return None
        return call

    def finished(self) -> None:
        """One that was taken has run."""
        with self._lock:
            self._running -= 1
            numbers = self._number_what_may_be_asked()
            then = self._over()
        for number in numbers:
            self._ask(number)
        if then is not None:
            then()

    def end(self, then: Callable[[], None]) -> None:
        """No more will be added: do `then` once all have run."""
        with self._lock:
            self._then = then
            now = self._over()
        if now is not None:
            now()

    def leave(self, then: Callable[[], None]) -> list[Call]:
        """See `Host`."""
        with self._lock:
            left = self._empty()
        self.end(then)
        return left

    def divert(self) -> list[Call]:
        """From here on it is `serve` that runs what is added. What has not begun comes back."""
        with self._lock:
            self._diverted = SimpleQueue()
            return self._empty()

    def serve(self, run: Callable[[Call], None], patience: float) -> bool:
        """Run what is added after `divert`, here, until `release`; False if that does not come."""
        assert self._diverted is not None
        deadline = _in(patience)
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                added = self._diverted.get(timeout=left)
            except Empty:
                return False
            if added is None:
                return True
            if isinstance(added, Call):
                run(added)
            else:
                deadline = _in(added)

    def allow(self, patience: float) -> None:
        """Have `serve` wait for `release` so many seconds from now."""
        assert self._diverted is not None
        self._diverted.put(patience)

    def release(self) -> None:
        """Let `serve` return."""
        assert self._diverted is not None
        self._diverted.put(None)

    def _empty(self) -> list[Call]:
        left = [*self._asked.values(), *self._waiting]
        self._asked.clear()
        self._waiting.clear()
        return left

    def _number_what_may_be_asked(self) -> list[int]:
        numbers = []
        while self._waiting and len(self._asked) + self._running < _MOST:
            # Far more numbers than calls at a time, so the next free one is near.
            self._number = (self._number + 1) & 0xFFFF
            if self._number not in self._asked:
                self._asked[self._number] = self._waiting.popleft()
                numbers.append(self._number)
        return numbers

    def _over(self) -> Callable[[], None] | None:
        """What is to be done now that nothing is left, once."""
        if self._running or self._asked or self._waiting:
            return None
        then, self._then = self._then, None
        return then


def _in(seconds: float) -> float | None:
    """That instant; None if it never comes."""
    return None if seconds == math.inf else time.monotonic() + seconds


class PlaceCalls:
    """The calls of a request that waits in place: the waiting thread runs them itself."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[Call | None] = SimpleQueue()

    def add(self, call: Call) -> None:
        """Have it run on the waiting thread."""
        self._queue.put(call)

    def leave(self, then: Callable[[], None]) -> list[Call]:
        """See `Host`. What was added before is run first."""
        self._queue.put(None)
        then()
        return []

    def serve(self) -> None:
        """Run calls on this thread until `leave`."""
        while (call := self._queue.get()) is not None:
            call.run()


def run_on_slot(call: Call, job: Job, parking: Parking) -> None:
    """Run a call of a parked request as `job`, which stands for the request on this slot.

    The thread is set up as for a resume and left as after a request. A transaction or
    cursor that the call leaves open is closed, and makes it fail.
    """

    def settle() -> None:
        try:
            close_what_is_open(job)
        finally:
            call.context.run(parking.leave_branch, job)

    if call.cancelled:
        return
    before, tls.job = tls.job, job
    try:
        try:
            call.context.run(parking.enter, job)
        except Cancelled as error:
            # A hook failed. The request has its state; only this must not run without.
            call.context.run(parking.leave_branch, job)
            failure = Error(f"not run: {error}")
            failure.__cause__ = error.__cause__
            call.fail(failure)
            return
        except BaseException as error:
            # The slot is of no use any more, but nobody must wait for this.
            call.fail(error)
            raise
        call.run(settle)
    finally:
        tls.job = before


def close_what_is_open(job: Job) -> None:
    """Close what a call that ran as `job` has left open. Raises an `Error` that says what."""
    for check in after_call:
        job.context.run(check, job)


def take_over(context: Context, *, but: ContextVar[Any] | None = None) -> None:
    """Make the changes that were made in `context`, a copy of the current one, here too."""
    here = copy_context()
    for variable, value in context.items():
        if variable is not but and (variable not in here or here[variable] is not value):
            variable.set(value)
    for rehome in rehomers:
        rehome()
