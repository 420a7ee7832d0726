"""One slot: a thread, its connection to the gateway, and the jobs that come on it.

The slot reads jobs and does what concerns the thread; what a job becomes is decided
by the runner of the worker's mode. The slot is idle whenever it reads, and it says so
to the gateway in no other way than by what the runner sends last (READY or PARK).
"""

from __future__ import annotations

import functools
import io
import json
import logging
import os
import sys
import threading
from collections.abc import Callable, Coroutine
from contextvars import Context
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Protocol

from layby import _relay
from layby._body import LazyBody
from layby._channel import Channel, Closed
from layby._exceptions import Cancelled
from layby._files import FileWrapper
from layby._job import Job, Process, Reason, Suspend, slot_closers, slot_openers, tls
from layby._wire import (
    CANCEL,
    FLAG_LAZY,
    FLAG_LOCAL,
    FLAG_SHIELDED,
    HOLD,
    REFUSED,
    REQUEST,
    RESULTS,
    RESUME,
    RETIRE,
    RETIRED,
    RUN,
    SLOT,
    STOP,
    Frame,
    WireError,
    encode,
    fill_environ,
)

log = logging.getLogger("layby")


class Runner(Protocol):
    """What a mode does with a new request, and with what is left to do after a relay.

    `begin` and `finish` end with READY or PARK sent.
    """

    parks: bool

    def open(self, slot: Slot) -> None: ...
    def begin(self, slot: Slot, job: Job) -> None: ...
    def finish(self, slot: Slot, job: Job, left_to_do: Coroutine[Any, Any, None]) -> None: ...
    def close(self, slot: Slot) -> None: ...


class ParkingRunner(Runner, Protocol):
    """A runner whose requests park."""

    def unpark(self, request: int, epoch: int) -> Job: ...
    def resume(self, slot: Slot, job: Job, value: Any) -> None: ...
    def cancel(self, slot: Slot, job: Job) -> None: ...
    def run(self, slot: Slot, request: int, epoch: int, number: int) -> None: ...


@dataclass(frozen=True)
class Welcome:
    """What the gateway said when this process joined; `key` is the process's secret."""

    process: int
    key: str = field(repr=False)
    max_plan: int
    thread_locals: tuple[str, ...]

    @classmethod
    def parse(cls, head: bytes) -> Welcome:
        """From a WELCOME's head. Raises WireError when that is none."""
        try:
            said = json.loads(head)
            return cls(
                process=int(said["process"]),
                key=str(said["key"]),
                max_plan=int(said["max_plan"]),
                thread_locals=tuple(str(name) for name in said["thread_locals"]),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise WireError("head", f"a welcome that is none: {error!r}") from error


class Slot:
    """A slot of this process, alive while its thread is in `run`."""

    def __init__(
        self,
        number: int,
        *,
        channel: Channel,
        welcome: Welcome,
        runner: Runner,
        parking: ParkingRunner | None,
        on_request: Callable[[], None] | None = None,
        on_refusal: Callable[[int], None] | None = None,
        process: Process | None = None,
    ) -> None:
        self.number = number
        self.channel = channel
        self.max_plan = welcome.max_plan
        opening = {"process": welcome.process, "key": welcome.key}
        self._opening = json.dumps(opening).encode()
        self._runner = runner
        # The same runner, if its requests park.
        self._parking = parking
        self._on_request = on_request
        # Called on the slot's thread, at its end, if the slot could not be opened.
        self._on_refusal = on_refusal
        self._process = process
        self._open = False
        self._forked = False
        self._broken = False
        # Held while a job waits in place: a loop that it is lent to may do so as well.
        self._waiting = threading.Lock()
        self._environ: dict[str, Any] = {
            "wsgi.version": (1, 0),
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": True,
            "wsgi.multiprocess": True,
            "wsgi.run_once": False,
            # The whole body is there, or comes whole; its end is the end of the input.
            "wsgi.input_terminated": True,
            "wsgi.file_wrapper": FileWrapper,
        }

    def run(self) -> None:
        """The thread's life: open, serve until retired or closed, close."""
        tls.waiter = self
        try:
            self._runner.open(self)
            self._run_openers()
            self.channel.send(encode(SLOT, aux=self.number, head=self._opening))
            self._open = True
            while self._serve():
                pass
            closed = self._run_closers()
            if closed:
                self.channel.send(encode(RETIRED))
        except Closed:
            log.debug("slot %d: connection closed", self.number)
            self._run_closers()
        except WireError as error:
            log.error("slot %d: the gateway sent what it must not: %s", self.number, error)
            self._run_closers()
        except BaseException as error:
            log.critical("slot %d: ended by a fault", self.number, exc_info=error)
            self._run_closers()
        finally:
            tls.waiter = None
            # A forked child may have a copy: what is closed only here has not ended.
            self.channel.shut()
            self.channel.close()
            if not self._open and not self._forked and self._on_refusal is not None:
                self._on_refusal(self.number)

    def disown(self) -> None:
        """In a forked child: what this slot has is its parent's."""
        self._forked = True
        self.channel.disown()

    def _serve(self) -> bool:
        """Read one job and run it. False when the slot is to retire."""
        frame, file = self.channel.receive()
        kind = frame.type
        if kind == REQUEST:
            self._begin(frame, file)
        elif kind == RESUME and (done := _relay.take(frame)) is not None:
            self._after_relay(done, frame, file)
        elif kind == RESUME and self._parking is not None:
            self._resume(self._parking, frame, file)
        elif kind == CANCEL and self._parking is not None:
            self._cancel(self._parking, frame)
        elif kind == RUN and self._parking is not None:
            self._run(self._parking, frame)
        elif kind == RETIRE:
            return False
        elif kind == REFUSED:
            reason = frame.head.decode("utf-8", "replace")
            log.error("slot %d: refused by the gateway: %s", self.number, reason)
            self._open = False
            raise Closed
        # A STOP for an answer that was over before it came means nothing.
        elif kind != STOP:
            raise WireError("kind", f"{frame!r} on an idle slot")
        return True

    def _begin(self, frame: Frame, file: BinaryIO | None) -> None:
        try:
            environ = self._environ_of(frame, file)
        except BaseException:
            if file is not None:
                file.close()
            raise
        job = Job(
            request=frame.request,
            epoch=frame.epoch,
            environ=environ,
            context=Context(),
            slot=self.number,
        )
        job.body = environ["wsgi.input"] if frame.flags & FLAG_LAZY else file
        job.process = self._process
        if self._on_request is not None:
            self._on_request()
        tls.job = job
        try:
            self._runner.begin(self, job)
        finally:
            tls.job = None
        self._check()

    def _environ_of(self, frame: Frame, file: BinaryIO | None) -> dict[str, Any]:
        environ = self._environ.copy()
        fill_environ(environ, frame.head, frame.aux)
        if frame.flags & FLAG_LAZY:
            if file is not None or frame.body:
                raise WireError("body", f"{frame!r} with a body that is to come later")
            environ["wsgi.input"] = LazyBody(environ)
            return environ
        environ["wsgi.input"] = file or io.BytesIO(frame.body)
        length = int(environ.get("CONTENT_LENGTH") or 0)
        if length != (os.fstat(file.fileno()).st_size if file else len(frame.body)):
            # A cut body must never reach the application as a whole one.
            raise WireError("body", f"{frame!r} has a body of another length than it says")
        return environ

    def _resume(self, runner: ParkingRunner, frame: Frame, file: BinaryIO | None) -> None:
        try:
            job = runner.unpark(frame.request, frame.epoch)
        except WireError:
            if file is not None:
                file.close()
            raise
        assert job.awaited is not None
        value = job.awaited.decode(frame, file)
        job.slot = self.number
        tls.job = job
        try:
            runner.resume(self, job, value)
        finally:
            tls.job = None
        self._check()

    def _cancel(self, runner: ParkingRunner, frame: Frame) -> None:
        job = runner.unpark(frame.request, frame.epoch)
        job.slot = self.number
        tls.job = job
        try:
            runner.cancel(self, job)
        finally:
            tls.job = None
        self._check()

    def _after_relay(self, done: _relay.Done, frame: Frame, file: BinaryIO | None) -> None:
        """The answer of a request was another server's, and that has ended."""
        job = done.job
        job.slot = self.number
        left_to_do = done.begin(frame, file)
        tls.job = job
        try:
            self._runner.finish(self, job, left_to_do)
        finally:
            tls.job = None
        self._check()

    def _run(self, runner: ParkingRunner, frame: Frame) -> None:
        try:
            runner.run(self, frame.request, frame.epoch, frame.aux)
        finally:
            tls.job = None
        self._check()

    def wait_in_place(self, job: Job, suspend: Suspend, reason: Reason, detail: str = "") -> Any:
        """See `_job.Waiter`."""
        _note_wait(reason, suspend.source, detail)
        head, body = suspend.encode(
            limit=self.max_plan, hold={"reason": reason, "source": suspend.source}
        )
        flags = suspend.flags | (FLAG_SHIELDED if job.shields else 0)
        hold = encode(HOLD, flags=flags, request=job.request, epoch=job.epoch, head=head, body=body)
        cancelled = job.cancelled
        with self._waiting:
            if job.cancelled and not cancelled:
                # Whoever waited before this was told, for both. What comes later cleans up.
                raise Cancelled("the client has left")
            try:
                self.channel.send(hold)
                if flags & FLAG_LOCAL:
                    return None
                frame, file = self._receive_results(job)
                if frame.type == RESULTS:
                    return suspend.decode(frame, file)
            except (Closed, WireError) as error:
                raise self.lost(job, error) from error
            job.cancelled = True
            raise Cancelled("the client has left")

    def _receive_results(self, job: Job) -> tuple[Frame, BinaryIO | None]:
        """What ends a wait in place: the RESULTS, or a CANCEL."""
        while True:
            frame, file = self.channel.receive()
            if frame.type in (RESULTS, CANCEL) and frame.request == job.request:
                if frame.epoch != job.epoch:
                    raise WireError("kind", f"{frame!r} for a job of epoch {job.epoch}")
                return frame, file
            # A STOP is for an answer that was over before it came.
            if frame.type != STOP:
                raise WireError("kind", f"{frame!r} while waiting in place")

    def lost(self, job: Job, error: Exception) -> Cancelled:
        """The gateway is gone, in the middle of the job: what to raise in it.

        The application must not take it for a failure of its own call, or go on.
        """
        self._broken = True
        job.cancelled = True
        level = logging.ERROR if isinstance(error, WireError) else logging.DEBUG
        log.log(level, "slot %d: lost while waiting in place or parking: %r", self.number, error)
        return Cancelled("the gateway is gone")

    def _check(self) -> None:
        if self._broken:
            raise Closed

    def _run_openers(self) -> None:
        for opener in slot_openers:
            try:
                opener(self.number)
            except Exception as error:
                log.error("slot %d: could not be opened fully", self.number, exc_info=error)

    def _run_closers(self) -> bool:
        """Close what this thread holds. False when something could not be closed."""
        if self._forked:
            return False  # To say goodbye to a database would end its parent's connection.
        done = True
        # First the requests that can only go on here: they may still use the rest.
        closers: list[Callable[[], None]] = [functools.partial(self._runner.close, self)]
        for closer in closers + slot_closers:
            try:
                closer()
            except Exception as error:
                done = False
                log.error("slot %d: could not be closed", self.number, exc_info=error)
        return done


_noted: set[tuple[str, str]] = set()


def _note_wait(reason: Reason, source: str, detail: str) -> None:
    """Log a wait in place, once for each line of the application."""
    if (reason, source) in _noted:
        return
    _noted.add((reason, source))
    # That a mode waits in place is how it works; the rest could be done better.
    level = logging.INFO if reason == "mode" else logging.WARNING
    log.log(level, "%s waits in place (%s)%s", source, reason, f": {detail}" if detail else "")
