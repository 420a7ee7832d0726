"""Running a coroutine to its end in place, on the calling thread and without a loop.

For coroutines below something synchronous (a sync-only middleware, wsgi mode) and
for code outside layby. What is awaited waits in place; parking is not decided here.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar

from layby._exceptions import Error
from layby._job import Suspend, tls
from layby._plan import run_outside

T = TypeVar("T")

NO_ASYNCIO = "asyncio cannot be used in a slot: only layby's own things can be awaited here"


def drive(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run `coroutine` to its end on this thread and return its result.

    Every layby thing it awaits waits in place: through the gateway when in a slot (with
    the reason on top of `job.inline`, else "mode"), by direct I/O otherwise. Anything
    else that it awaits is answered with `Error`, raised inside it.
    """
    value: Any = None
    failure: BaseException | None = None
    while True:
        try:
            if failure is None:
                yielded = coroutine.send(value)
            else:
                yielded = coroutine.throw(failure)
        except StopIteration as stop:
            result: T = stop.value
            return result
        except RuntimeError as error:
            explain_missing_loop(error)
            raise
        value, failure = None, None
        if not isinstance(yielded, Suspend):
            failure = Error(f"{NO_ASYNCIO}, not {type(yielded).__name__!r}")
            continue
        try:
            value = wait(yielded)
        except BaseException as error:  # noqa: BLE001 - it is raised again, in the coroutine
            failure = error


def wait(suspend: Suspend) -> Any:
    """Wait in place for what `suspend` asks: its outcomes."""
    job, waiter = tls.job, tls.waiter
    if job is None or waiter is None:
        return run_outside(suspend.gather)
    reason = job.inline[-1] if job.inline else "mode"
    return waiter.wait_in_place(job, suspend.gather, reason, suspend.source)


def explain_missing_loop(error: RuntimeError) -> None:
    """Say on asyncio's "no running event loop" why there is none, once."""
    if str(error) == "no running event loop" and NO_ASYNCIO not in getattr(error, "__notes__", ()):
        error.add_note(NO_ASYNCIO)
