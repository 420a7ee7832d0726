"""Waiting for something in this process: PARK and HOLD with the flag LOCAL.

What is waited for begins once PARK is out, and says WANT when the request can go on.
Between the two the request may be cancelled, from another thread; all of that is put in
order here. What is waited for is up to the subclasses: a ride on the event loop
(`_ride`), calls side by side (`_parallel`).
"""

from __future__ import annotations

import json
import logging
import math
import threading
import types
from abc import abstractmethod
from collections.abc import Callable, Coroutine, Generator, Mapping
from contextvars import Context
from enum import Enum
from typing import Any, BinaryIO, ClassVar

from layby._calls import Call, Calls, run_on_slot
from layby._job import Job, Process, Suspend
from layby._parking import Parking
from layby._wire import FLAG_LOCAL, Frame, WireError

log = logging.getLogger("layby")

_NO_RESULTS = (b"", b'{"results":[]}')


class _State(Enum):
    FRESH = "not begun"
    """→ UNDER_WAY, ABANDONED"""
    UNDER_WAY = "under way"
    """→ OVER"""
    OVER = "over"
    ABANDONED = "abandoned"
    """Cancelled before it began: it never will."""


class LocalWait(Suspend):
    """Waits for something in this process; nothing comes back with the RESUME."""

    __slots__ = (
        "_abandoned",
        "_context",
        "_epoch",
        "_lock",
        "_process",
        "_request",
        "_state",
        "calls",
    )

    flags: ClassVar[int] = FLAG_LOCAL

    # How long a cancelled request waits for what it has under way, in seconds; then it is
    # given up.
    patience: ClassVar[float] = math.inf

    def __init__(self, source: str) -> None:
        super().__init__(source)
        # Reentrant: what is begun may have ended at once.
        self._lock = threading.RLock()
        self._state = _State.FRESH
        # Cancelled while it was under way.
        self._abandoned = False

    def encode(self, *, limit: int, hold: Mapping[str, str] | None = None) -> tuple[bytes, bytes]:
        """No plan: only why it waits in place, if it does."""
        return (json.dumps({"hold": dict(hold)}).encode() if hold is not None else b""), b""

    def decode(self, frame: Frame, file: BinaryIO | None) -> None:
        """Nothing: the results are empty."""
        if file is not None:
            file.close()
        if file is not None or frame.body or frame.head not in _NO_RESULTS:
            raise WireError("head", f"{frame!r} with results for a request that has no plan")

    def prepare(self, job: Job, stepped: Coroutine[Any, Any, Any] | None) -> None:
        """See `Suspend.prepare`."""
        assert job.process is not None, "a request can only park LOCAL in a worker"
        self._process: Process = job.process
        self._request, self._epoch = job.request, job.epoch
        self._context: Context = job.context
        self.calls = Calls(self._ask)

    def parked(self) -> None:
        """See `Suspend.parked`: it begins."""
        with self._lock:
            if self._state is not _State.FRESH:
                return
            self._state = _State.UNDER_WAY
            self._begin()

    def abandon(self, run: Callable[[Call], None]) -> bool:
        """See `Suspend.abandon`."""
        with self._lock:
            if self._state is _State.FRESH:
                self._state = _State.ABANDONED
            if self._state is not _State.UNDER_WAY:
                return True
            self._abandoned = True
            # The gateway gives a cancelled request no more slots but this one.
            left = self.calls.divert()
        shielded = self._shielded()
        self._stop()
        for call in left:
            if shielded:
                self.calls.add(call)
            else:
                call.drop()
        if self.calls.serve(run, math.inf if shielded else self.patience):
            return True
        log.error("%s: it does not end, though it is cancelled: given up", self.source)
        return False

    def take(self, epoch: int, number: int) -> Call | None:
        """The call that a RUN is for; None when it is not wanted any more."""
        return self.calls.take(number) if epoch == self._epoch else None

    @abstractmethod
    def _begin(self) -> None:
        """Start what is waited for; `_end` is called when it has ended, on any thread."""

    @abstractmethod
    def _stop(self) -> None:
        """Make it end soon."""

    def _shielded(self) -> bool:
        """Whether it is not to end yet."""
        return False

    def _end(self) -> None:
        with self._lock:
            self._state = _State.OVER
            abandoned = self._abandoned
        if abandoned:
            self.calls.release()
        else:
            self._process.want(self._request, self._epoch)

    def _ask(self, number: int) -> None:
        self._process.call(self._request, self._epoch, number)


def run_asked_for(job: Job | None, epoch: int, number: int, slot: int, parking: Parking) -> None:
    """Run, on this slot, the call of a parked job that a RUN is for, unless it is not wanted now.

    `job` may be resumed or cancelled at any moment; who does that waits for a call that runs.
    """
    wait = job.awaited if job is not None else None
    if job is None or not isinstance(wait, LocalWait):
        return
    call = wait.take(epoch, number)
    if call is None:
        return
    branch = job.branch(call.context, slot, part=call.part)
    branch.epoch = epoch
    try:
        run_on_slot(call, branch, parking)
    finally:
        wait.calls.finished()


def beside(job: Job, parking: Parking) -> Callable[[Call], None]:
    """What runs calls of a job on the slot that is about to step it."""

    def run(call: Call) -> None:
        run_on_slot(call, job.branch(call.context, job.slot, part=call.part), parking)

    return run


@types.coroutine
def wait_for(what: Any) -> Generator[Any, Any, Any]:
    """Hand `what` to whoever steps this coroutine, and give back what comes of it."""
    return (yield what)
