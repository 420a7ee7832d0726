"""Running a coroutine to its end on the calling thread, without a loop.

For coroutines below something synchronous (a sync-only middleware, a WSGI application)
and for code outside layby. What is awaited waits as synchronous code does: in greenlet
mode it may park, else it waits in place.
"""

from __future__ import annotations

from collections.abc import Coroutine, Generator
from typing import Any, TypeVar

from layby._exceptions import Error
from layby._job import Job, Reason, Suspend, Waiter, tls
from layby._wire import FLAG_LOCAL

T = TypeVar("T")

NO_ASYNCIO = (
    "asyncio cannot be used in a slot: put it under `async with layby.io:`;"
    " outside of that only layby's own things can be awaited, side by side by layby.gather"
)


def drive(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run `coroutine` to its end on this thread and return its result.

    Every layby thing it awaits is waited for as `wait` does. Anything else that it awaits
    is answered with `Error`, raised inside it.
    """
    steps = driven(coroutine)
    try:
        yielded = next(steps)
        while True:
            yielded = steps.throw(foreign(yielded))
    except StopIteration as stop:
        result: T = stop.value
        return result


def driven(coroutine: Coroutine[Any, Any, T]) -> Generator[Any, Any, T]:
    """`drive`, for who knows what to do with other things: those are yielded on."""
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
        try:
            value = wait(yielded, coroutine) if isinstance(yielded, Suspend) else (yield yielded)
        except BaseException as error:  # noqa: BLE001 - it is raised again, in the coroutine
            failure = error


def foreign(yielded: object) -> Error:
    """What to raise in a coroutine that awaits what nobody here can wait for."""
    return Error(f"{NO_ASYNCIO}, not {type(yielded).__name__!r}")


def wait(suspend: Suspend, stepped: Coroutine[Any, Any, Any] | None = None) -> Any:
    """Wait here for what `suspend` asks; `stepped` is the coroutine that yielded it, if any.

    In a slot through the gateway: parked in greenlet mode; else in place, with the reason on
    top of `job.inline`, or "mode". Elsewhere by direct I/O.
    """
    job, waiter = tls.job, tls.waiter
    if job is None or waiter is None:
        return suspend.outside(stepped)
    if tls.park is not None:
        try:
            return tls.park(job, suspend, stepped)
        finally:
            suspend.resumed()
    reason = job.inline[-1] if job.inline and stepped is not None else "mode"
    return wait_in_place(waiter, job, suspend, stepped, reason)


def wait_in_place(
    waiter: Waiter,
    job: Job,
    suspend: Suspend,
    stepped: Coroutine[Any, Any, Any] | None,
    reason: Reason,
    detail: str = "",
) -> Any:
    """Wait in place in a slot, by the gateway or, for what is LOCAL, by this thread."""
    value = waiter.wait_in_place(job, suspend, reason, detail)
    return suspend.outside(stepped) if suspend.flags & FLAG_LOCAL else value


def misses_loop(error: BaseException) -> bool:
    """Whether this is what code gets that wants an event loop where there is none."""
    if isinstance(error, Error):
        return str(error).startswith(NO_ASYNCIO)
    # anyio and sniffio raise subclasses of RuntimeError with names of their own.
    return isinstance(error, RuntimeError) and (
        "no running event loop" in str(error)
        # From asyncio.gather and ensure_future, which name the thread.
        or str(error).startswith("There is no current event loop")
        or type(error).__name__ in ("AsyncLibraryNotFoundError", "NoEventLoopError")
    )


def explain_missing_loop(error: RuntimeError) -> None:
    """Say on asyncio's error that it has no event loop why there is none, once."""
    if misses_loop(error) and NO_ASYNCIO not in getattr(error, "__notes__", ()):
        error.add_note(NO_ASYNCIO)
