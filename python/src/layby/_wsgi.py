"""wsgi mode: any PEP 3333 application, one call per request.

Nothing parks here: a call on layby in the application waits in place. The rules of
the answer itself (headers, Content-Length, cuts) are in `_answer`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from layby import _hooks
from layby._answer import Answer
from layby._body import LazyBody
from layby._channel import Closed
from layby._drive import drive
from layby._exceptions import Cancelled
from layby._files import FileWrapper
from layby._job import Job, before_resume, log_failure
from layby._locals import ThreadLocals
from layby._relay import job_after
from layby._wire import MAX_CHUNK, WireError

if TYPE_CHECKING:
    from layby._slot import Slot

log = logging.getLogger("layby")

ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None]


class StartResponse(Protocol):
    """PEP 3333's start_response."""

    def __call__(
        self, status: str, headers: list[tuple[str, str]], exc_info: ExcInfo | None = None, /
    ) -> Callable[[bytes], None]: ...


WsgiApp = Callable[[dict[str, Any], StartResponse], Iterable[bytes]]


class _WsgiAnswer(Answer):
    __slots__ = ()

    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: ExcInfo | None = None
    ) -> Callable[[bytes], None]:
        if exc_info is not None:
            try:
                if self.sent:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None  # It would keep this frame alive in a cycle.
        elif self.begun:
            raise AssertionError("start_response was called twice without exc_info")
        self.begin(status, headers)
        return self._legacy_write

    def _legacy_write(self, data: bytes) -> None:
        if not self.write(data) and self.stopped:
            raise Cancelled("nobody reads this answer any more")


class WsgiRunner:
    """Runs one WSGI application."""

    parks = False

    def __init__(self, app: WsgiApp, locals: ThreadLocals | None = None) -> None:
        self._app = app
        # Those that travel with requests, where those share their thread with others.
        self._locals = locals

    def open(self, slot: Slot) -> None:
        """A slot begins: nothing to do for it."""

    def close(self, slot: Slot) -> None:
        """A slot ends: nothing is left on it."""

    def begin(self, slot: Slot, job: Job) -> None:
        """Answer a request, from its call to READY."""
        job.context.run(self.answer, slot, job)

    def answer(self, slot: Slot, job: Job) -> None:
        """`begin`, for who is in the job's context already."""
        answer = _WsgiAnswer(slot.channel, job)
        result: Iterable[bytes] | None = None
        try:
            if isinstance(job.body, LazyBody) and "CONTENT_LENGTH" not in job.environ:
                # Without one applications take it that there is no body.
                job.body.wait()
            result = self._app(job.environ, answer.start_response)
            kind = type(result)
            if kind is list or kind is tuple:
                # Has no close(), so nothing comes after its last byte.
                chunks: Any = result
                body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
                _require_head(answer)
                answer.whole(body, ready=True)
            elif not answer.file(result):
                if isinstance(result, FileWrapper):
                    pieces: Iterable[bytes] = result.blocks(MAX_CHUNK)
                else:
                    pieces = result
                for chunk in pieces:
                    if chunk:
                        _require_head(answer)
                    if not answer.write(chunk):
                        break
                _require_head(answer)
                answer.end()
        except (Closed, WireError):
            raise
        except Cancelled:
            answer.discard()
        except BaseException as error:  # noqa: BLE001 - SystemExit must not end the slot
            log_failure(job, error)
            answer.fail()
        finally:
            close = getattr(result, "close", None)
            if close is not None:
                run_close(job, close)
            job.end()
        if self._locals is not None:
            keep_for_the_end(job, self._locals)
        answer.ready()

    def finish(self, slot: Slot, job: Job, left_to_do: Coroutine[Any, Any, None]) -> None:
        """Do what is left to do once another server's answer is over, to READY."""
        finish(slot, job, left_to_do, _enter)


def keep_for_the_end(job: Job, locals: ThreadLocals) -> None:
    """Keep what the thread holds for a request, if there is something left to do for it.

    To be called before READY: until then that cannot begin.
    """
    after = job_after(job)
    if after is not None:
        locals.leave(after)


def finish(
    slot: Slot, job: Job, left_to_do: Coroutine[Any, Any, None], enter: Callable[[Job], None]
) -> None:
    """Run `left_to_do` to its end and READY; what it waits for is waited for in place.

    `enter` makes this thread the job's.
    """
    try:
        job.context.run(enter, job)
        job.context.run(drive, left_to_do)
    except (Closed, WireError):
        raise
    except Cancelled:
        pass  # It will not get what it waited for, or (logged) its state.
    except BaseException as error:  # noqa: BLE001 - SystemExit must not end the slot
        log_failure(job, error)
    finally:
        left_to_do.close()
    Answer.of_another(slot.channel, job).ready()


def _enter(job: Job) -> None:
    for hook in before_resume:
        hook(job)
    _hooks.run_on_resume(job)


def _require_head(answer: Answer) -> None:
    if not answer.begun:
        raise AssertionError("the application did not call start_response")


def run_close(job: Job, close: Callable[[], object]) -> None:
    """Close an application's answer; that it fails costs the client nothing any more."""
    try:
        close()
    except Cancelled:
        pass  # It waited in place while the client left: nothing remains to be ended.
    except BaseException as error:  # noqa: BLE001 - as above
        log_failure(job, error, "close() of the answer")
