"""`async with layby.parallel()`: blocking operations side by side, each on a slot.

The operations run once the block has ended: then their request parks, without a slot, and
each of them gets one. So they cannot wait for a slot that their own request holds, and
one slot is enough for any number of them. Where the request cannot park they run one
after the other, on its own thread; in a transaction they would not be part of it, so that
is refused.
"""

from __future__ import annotations

import asyncio
import inspect
from asyncio import _get_running_loop
from collections.abc import Callable, Coroutine
from contextvars import Context, copy_context
from functools import partial
from typing import Any, Generic, ParamSpec, TypeVar, overload

from layby import _ride
from layby._calls import Call, close_what_is_open
from layby._drive import drive
from layby._exceptions import Cancelled, Error, ParkRefused
from layby._job import Job, park_checks, tls, transaction_checks
from layby._local import LocalWait, wait_for
from layby._source import application_line

T = TypeVar("T")
P = ParamSpec("P")


class Op(Generic[T]):
    """An operation of a `parallel` block; its result is there once the block has ended."""

    __slots__ = ("_ended", "_error", "_function", "_value")

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function
        self._ended = False
        self._value: Any = None
        self._error: BaseException | None = None

    def __repr__(self) -> str:
        state = "not run yet" if not self._ended else "failed" if self._error else "done"
        return f"<Op {getattr(self._function, 'func', self._function)!r} {state}>"

    def result(self) -> T:
        """What the function returned; raises what it raised.

        Raises `Error` while the block has not ended: the operation has not run yet.
        """
        if not self._ended:
            raise Error(f"{self!r}: operations run when their `async with layby.parallel()` ends")
        if self._error is not None:
            raise self._error
        value: T = self._value
        return value

    def call(self) -> Any:
        """Run it, here."""
        value = self._function()
        return drive(value) if inspect.iscoroutine(value) else value

    async def call_on_loop(self) -> Any:
        """Run it under the event loop of another server."""
        value = await _ride.elsewhere(self._function)
        return await value if inspect.iscoroutine(value) else value

    def settle(self, value: Any, error: BaseException | None) -> None:
        """Note what came of it."""
        self._value, self._error, self._ended = value, error, True


class Parallel:
    """What `async with layby.parallel() as ops` gives: takes operations while in the block."""

    def __init__(self) -> None:
        self._ops: list[Op[Any]] = []
        self._open = False

    def __repr__(self) -> str:
        return f"<parallel of {len(self._ops)}, {'open' if self._open else 'closed'}>"

    @overload
    def run(
        self, function: Callable[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Op[T]: ...
    @overload
    def run(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Op[T]: ...
    def run(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Op[Any]:
        """Have `function(*args, **kwargs)` run on a slot at the end of the block.

        It may be an `async def` of mostly blocking code. Raises `Error` outside the block.
        """
        if not self._open:
            raise Error("operations can only be added inside `async with layby.parallel()`")
        op: Op[Any] = Op(partial(function, *args, **kwargs))
        self._ops.append(op)
        return op

    async def __aenter__(self) -> Parallel:
        self._open = True
        await _refuse_in_transaction()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: object
    ) -> None:
        self._open = False
        if not self._ops or (error is not None and not isinstance(error, Exception)):
            return
        if error is None:
            await self._run()
            _raise_failures(self._ops)
            return
        try:
            await self._run()
        except ParkRefused:
            pass  # The block's own exception tells more.

    async def _run(self) -> None:
        await _refuse_in_transaction()
        if _get_running_loop() is None:
            await wait_for(Branch(application_line(), self._ops))
            return
        ride = _ride.here()
        await asyncio.gather(*(_run_on_loop(op, ride) for op in self._ops))


async def _run_on_loop(op: Op[Any], ride: _ride.Ride | None) -> None:
    try:
        value = await (op.call_on_loop() if ride is None else ride.call(op.call))
    except Exception as error:  # noqa: BLE001 - it is raised when all have ended
        op.settle(None, error)
    else:
        op.settle(value, None)


def parallel() -> Parallel:
    """Run blocking operations side by side, each on a slot of its own.

        async with layby.parallel() as ops:
            orders = ops.run(Order.objects.filter(user=user).count)
            stock = ops.run(load_stock, warehouse, fresh=True)
        print(orders.result(), stock.result())

    They run when the block ends, each with a copy of the context, on the database connection
    of its slot, and as many at a time as there are slots free; the request itself holds
    none meanwhile. One exception is raised as it is at the end of the block, several as
    an `ExceptionGroup`; an exception of the block itself goes before them. Where the
    request cannot park they run one after the other.

    Raises `ParkRefused` in an open transaction: the operations would not be part of it.
    """
    return Parallel()


class Branch(LocalWait):
    """Waits for operations that run on slots."""

    __slots__ = ("_contexts", "_ops")

    def __init__(self, source: str, ops: list[Op[Any]]) -> None:
        super().__init__(source)
        self._ops = ops

    def prepare(self, job: Job, stepped: Coroutine[Any, Any, Any] | None) -> None:
        """See `Suspend.prepare`."""
        super().prepare(job, stepped)
        self._contexts: list[Context] = [job.context.copy() for _ in self._ops]

    def outside(self, stepped: Coroutine[Any, Any, Any] | None) -> None:
        """Run them one after the other, on this thread; none after the client has left."""
        left = False
        for op in self._ops:
            if left:
                op.settle(None, Cancelled("the client has left"))
                continue
            call = Call(op.call, copy_context(), op.settle)
            job = tls.job
            if job is None:
                call.run()
                continue
            tls.job = branch = job.branch(call.context, job.slot)
            try:
                call.run(partial(close_what_is_open, branch))
            finally:
                tls.job = job
                # What a request does that is being ended already is to clean up.
                left = branch.cancelled and not job.cancelled
                job.cancelled = job.cancelled or branch.cancelled

    def _begin(self) -> None:
        for op, context in zip(self._ops, self._contexts, strict=True):
            self.calls.add(Call(op.call, context, op.settle))
        self.calls.end(self._end)

    def _stop(self) -> None:
        self.calls.leave(self._end)


async def _refuse_in_transaction() -> None:
    """Raise `ParkRefused` in an open transaction, which only its own thread knows of."""
    if _get_running_loop() is None:
        _refuse_here()
        return
    ride = _ride.here()
    if ride is not None:
        # A request with a transaction does not park: its thread waits.
        if ride.waits_in_place:
            await ride.call(_refuse_here)
    elif tls.job is not None:
        await _ride.elsewhere(_refuse_here)  # The job is lent to this loop.


def _refuse_here() -> None:
    what = _open_transaction(tls.job)
    if what is not None:
        raise ParkRefused(
            f"layby.parallel() cannot be used here ({what}): its operations run on"
            " other connections, and would not be part of the transaction"
        )


def _open_transaction(job: Job | None) -> str | None:
    if job is None:
        found = (check() for check in transaction_checks)
        return next((what for what in found if what is not None), None)
    for check in park_checks:
        obstacle = check(job)
        if obstacle is not None and obstacle.reason == "transaction":
            return obstacle.detail
    return None


def _raise_failures(ops: list[Op[Any]]) -> None:
    failures = [op._error for op in ops if op._error is not None]
    for failure in failures:
        if not isinstance(failure, Exception):
            raise failure
    if len(failures) == 1:
        raise failures[0]
    if failures:
        raise BaseExceptionGroup("several operations failed", failures)
