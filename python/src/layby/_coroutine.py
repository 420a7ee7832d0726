"""coroutine mode: a request is one coroutine, stepped by whatever slot is free.

A step ends with an answer or a park. Here is decided whether a request may park at
this moment; what cannot, waits in place. Once PARK is sent the job belongs to
another thread: nothing of it may be touched after that.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import TYPE_CHECKING, Any

from layby import _stream
from layby._answer import Answer
from layby._channel import Closed
from layby._drive import explain_missing_loop, foreign, wait_in_place
from layby._exceptions import Cancelled
from layby._job import App, AppResponse, Job, Obstacle, Suspend, log_failure
from layby._local import beside, run_asked_for
from layby._locals import ThreadLocals
from layby._parking import Parking
from layby._wire import FLAG_SHIELDED, PARK, READY, WireError, encode
from layby._wsgi import keep_for_the_end, run_close

if TYPE_CHECKING:
    from layby._slot import Slot

log = logging.getLogger("layby")


class CoroutineRunner:
    """Runs one coroutine application, and keeps its parked requests."""

    parks = True

    def __init__(self, app: App, locals: ThreadLocals) -> None:
        self._app = app
        self._locals = locals
        self._parking = Parking(locals)
        # By request id. Read and written by all slot threads; each use is one
        # operation of the dict, and so atomic.
        self._parked: dict[int, Job] = {}

    def open(self, slot: Slot) -> None:
        """A slot begins: nothing to do for it."""

    def close(self, slot: Slot) -> None:
        """A slot ends: what is parked can go on at others."""

    @property
    def parked(self) -> int:
        """How many requests are parked in this process."""
        return len(self._parked)

    def begin(self, slot: Slot, job: Job) -> None:
        """Run a new request until it answers or parks."""
        self._locals.begin()
        try:
            job.coroutine = job.context.run(self._app, job.environ)
        except BaseException as error:  # noqa: BLE001 - SystemExit must not end the slot
            log_failure(job, error)
            answer = Answer(slot.channel, job)
            answer.fail()
            self._leave(job)
            answer.ready()
            return
        self._step(slot, job)

    def unpark(self, request: int, epoch: int) -> Job:
        """Take a parked request for its next step. WireError when there is none such."""
        job = self._parked.get(request)
        if job is None or epoch != job.epoch + 1 or self._parked.pop(request, None) is None:
            raise WireError("kind", f"no request {request} is parked for epoch {epoch}")
        job.epoch = epoch
        return job

    def resume(self, slot: Slot, job: Job, value: Any) -> None:
        """Go on with a request, given what came of what it waited for."""
        self._go_on(slot, job, value)

    def cancel(self, slot: Slot, job: Job) -> None:
        """End a request whose client has left while it was parked."""
        job.cancelled = True
        assert job.awaited is not None
        if not job.awaited.abandon(beside(job, self._parking)):
            # Its coroutine is still running: all that can be done is to let go of it.
            self._leave(job)
            Answer(slot.channel, job).ready()
            return
        self._go_on(slot, job, None, Cancelled("the client has left"))

    def run(self, slot: Slot, request: int, epoch: int, number: int) -> None:
        """Run what a parked request asked for with CALL, unless it is not wanted any more."""
        run_asked_for(self._parked.get(request), epoch, number, slot.number, self._parking)
        slot.channel.send(encode(READY, request=request, epoch=epoch))

    def finish(self, slot: Slot, job: Job, left_to_do: Coroutine[Any, Any, None]) -> None:
        """Do what is left to do once another server's answer is over; it may park."""
        job.answer = Answer.of_another(slot.channel, job)
        job.coroutine = left_to_do
        self._go_on(slot, job, None)

    def _go_on(
        self, slot: Slot, job: Job, value: Any, failure: BaseException | None = None
    ) -> None:
        try:
            job.context.run(self._parking.enter, job)
        except Cancelled as cancelled:
            failure = cancelled
        self._step(slot, job, value, failure)

    def _step(
        self,
        slot: Slot,
        job: Job,
        value: Any = None,
        failure: BaseException | None = None,
    ) -> None:
        coroutine = job.coroutine
        assert coroutine is not None
        run = job.context.run
        answer = job.answer
        if answer is None:
            answer = Answer(slot.channel, job)
        else:
            answer.move(slot.channel)
        try:
            while True:
                if failure is None:
                    yielded = run(coroutine.send, value)
                else:
                    yielded = run(coroutine.throw, failure)
                value, failure = None, None
                if not isinstance(yielded, Suspend):
                    failure = foreign(yielded)
                    continue
                try:
                    if job.answer is not None:
                        # The client need not wait as well for what has been decided.
                        answer.flush()
                    obstacle = run(self._parking.obstacle, job)
                    if obstacle is None:
                        obstacle = self._park(slot, job, yielded)
                        if obstacle is None:
                            return
                    value = run(
                        wait_in_place,
                        slot, job, yielded, coroutine, obstacle.reason, obstacle.detail,
                    )  # fmt: skip
                except (Closed, WireError):
                    raise
                except BaseException as error:  # noqa: BLE001 - it is raised in the coroutine
                    failure = error
        except StopIteration as stop:
            if job.answer is None:
                make = None if job.cancelled else getattr(stop.value, "stream", None)
                stream = make() if make is not None else None
                if stream is not None:
                    # The request goes on as another coroutine: the one that sends its answer.
                    job.answer = answer
                    job.coroutine = self._send_stream(answer, job, stop.value, stream)
                    self._step(slot, job)
                    return
                run(self._answer, answer, job, stop.value)
        except (Closed, WireError):
            raise
        except BaseException as error:  # noqa: BLE001 - SystemExit must not end the slot
            _give_up(answer, job, error)
        self._leave(job)
        answer.ready()

    def _leave(self, job: Job) -> None:
        """The request is over."""
        keep_for_the_end(job, self._locals)
        self._locals.end()
        job.end()

    def _park(self, slot: Slot, job: Job, suspend: Suspend) -> Obstacle | None:
        """Send PARK. What came up instead, if anything."""
        head, body = suspend.encode(limit=slot.max_plan)
        flags = suspend.flags | (FLAG_SHIELDED if job.shields else 0)
        frame = encode(
            PARK, flags=flags, request=job.request, epoch=job.epoch, head=head, body=body
        )
        obstacle = job.context.run(self._parking.leave, job)
        if obstacle is not None:
            return obstacle
        suspend.prepare(job, job.coroutine)
        job.awaited = suspend
        request = job.request
        self._parked[request] = job
        try:
            slot.channel.send(frame)
        except Closed:
            # The gateway never got it, so nobody will ever resume it.
            self._parked.pop(request, None)
            raise
        suspend.parked()
        return None

    async def _send_stream(
        self,
        answer: Answer,
        job: Job,
        response: AppResponse,
        stream: AsyncGenerator[bytes, None],
    ) -> None:
        """Send what an application's generator makes; it may park."""

        async def write(piece: bytes) -> bool:
            return answer.write(piece)

        try:
            answer.begin(response.status, response.headers)
            await _stream.send(stream, write)
            answer.end()
        except (Closed, WireError, GeneratorExit):
            raise  # The process ends.
        except BaseException as error:  # noqa: BLE001 - SystemExit must not end the slot
            _give_up(answer, job, error)
        run_close(job, response.close)

    def _answer(self, answer: Answer, job: Job, response: AppResponse) -> None:
        """Send what the application returned; in the job's context, for it may be lazy."""
        close: Callable[[], object] | None = response.close
        try:
            if job.cancelled:
                answer.discard()
            else:
                answer.begin(response.status, response.headers)
                if response.quick_close:
                    body = b"".join(response)
                    response.close()
                    close = None
                    answer.whole(body, ready=True)
                elif not answer.file(getattr(response, "filelike", None)):
                    for chunk in response:
                        if not answer.write(chunk):
                            break
                    answer.end()
        except (Closed, WireError):
            raise
        except Cancelled:
            answer.discard()
        except BaseException as error:  # noqa: BLE001 - SystemExit must not end the slot
            log_failure(job, error)
            answer.fail()
        finally:
            if close is not None:
                run_close(job, close)


def _give_up(answer: Answer, job: Job, error: BaseException) -> None:
    """End the answer of a coroutine that ended with `error`."""
    if isinstance(error, Cancelled):
        answer.discard()
        return
    if isinstance(error, RuntimeError):
        explain_missing_loop(error)
    log_failure(job, error)
    answer.fail()
