"""A request's coroutine on the event loop, and its ways there and back.

A coroutine cannot be moved to a loop as it is: asyncio wants a task of its own. So a task
of the loop, the *ride*, steps the very same coroutine object, and hands on the futures that
it awaits. The coroutine boards the ride by yielding `Board` to whoever steps it in a
slot, and lands by yielding `Leave` to the ride. In between `asyncio.current_task()`
is the ride's task, so timeouts, cancel scopes and task groups work as ever.

Where the request cannot park the coroutine rides all the same, while its thread waits in
place for it. In the ride the coroutine runs in the request's context; the task itself
has another, because the loop must be able to wake it while a slot is in the request's.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
from asyncio import _get_running_loop
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context, ContextVar, copy_context
from functools import partial
from typing import Any, ClassVar, Final, ParamSpec, TypeVar

from layby import _loop
from layby._calls import Call, Host, PlaceCalls, take_over
from layby._exceptions import Error
from layby._job import Job, Suspend, rehomers, tls
from layby._local import LocalWait, wait_for
from layby._source import application_line

log = logging.getLogger("layby")

T = TypeVar("T")
P = ParamSpec("P")

INSIDE_IO = (
    "inside `async with layby.io` the code runs on the event loop, not in a slot: use an asyncio"
    " client there (httpx.AsyncClient, for one), or wait for layby's things outside the block"
)

# The ride whose coroutine runs in this context; child tasks inherit it.
_current: ContextVar[Ride | None] = ContextVar("layby_ride", default=None)


class Leave:
    """What a coroutine yields to its ride in order to be in a slot again."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"<Leave {self.name}>"


# The ride is over.
FOR_GOOD: Final = Leave("for good")
# The coroutine will board again; its task lives on meanwhile.
FOR_A_WHILE: Final = Leave("for a while")


class Ride:
    """One coroutine's time on the loop, in one task; begins with the first `board`."""

    def __init__(self, stepped: Coroutine[Any, Any, Any], job: Job | None) -> None:
        self._stepped = stepped
        self.job = job
        # The thread that waits for it, if one does.
        self.home = threading.current_thread() if job is None else None
        self.task: asyncio.Task[None] | None = None
        # Blocks of `async with layby.io` that its task is in.
        self.depth = 0
        # Where its calls go; None while the coroutine is in a slot.
        self._host: Host | None = None
        # Depth of `with layby.shield()` in its task and the children.
        self.shields = 0
        # To be told when it is cancelled, which waits until it is not shielded.
        self._cancelled: Callable[[], None] | None = None
        # Calls of its child tasks that wait until it has boarded again.
        self._calls: list[Call] = []

    def board(self, context: Context, host: Host, landed: Callable[[], None]) -> None:
        """Take the coroutine aboard, from any thread: nobody else may step it any more.

        `landed` is called once it is back, and what it had run in slots has ended.
        """
        _loop.loop().call_soon_threadsafe(self._board, context, host, landed)

    def cancel(
        self,
        put_off: Callable[[], None] = lambda: None,
        cancelled: Callable[[], None] = lambda: None,
    ) -> None:
        """Cancel its task, from any thread; shielded, once it no longer is.

        On the loop `put_off` is called if that is so, and `cancelled` when it is done.
        """
        _loop.loop().call_soon_threadsafe(self._cancel, put_off, cancelled)

    @property
    def waits_in_place(self) -> bool:
        """Whether a thread waits for it, and runs what it calls: its request is not parked."""
        return isinstance(self._host, PlaceCalls)

    def shield(self) -> None:
        """A shield is entered, on the loop."""
        self.shields += 1

    def unshield(self) -> None:
        """It is left; perhaps in a slot, where the coroutine may be meanwhile."""
        if _loop.is_running_here():
            self._unshield()
        else:
            _loop.loop().call_soon_threadsafe(self._unshield)

    async def call(self, function: Callable[[], T]) -> T:
        """Run `function` in a slot; for the ride's task and its children.

        It sees the caller's context variables, and the caller sees the changes that it makes.
        """
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        context = copy_context()
        call = Call(function, context, partial(_settle_soon, future), part=True)
        if self.task is None or self.task.done():
            raise Error("the `async with layby.io` block that this belongs to is over")
        if self._host is not None:
            self._host.add(call)
        else:
            self._calls.append(call)
        try:
            result = await future
        except asyncio.CancelledError:
            call.cancelled = True
            raise
        take_over(context, but=_current)
        return result

    def _board(self, context: Context, host: Host, landed: Callable[[], None]) -> None:
        self._context, self._host, self._landed = context, host, landed
        for call in self._calls:
            host.add(call)
        self._calls.clear()
        context.run(self._arrive)
        if self.task is None:
            self._aboard = asyncio.Event()
            self.task = _loop.loop().create_task(self._ride(), name="layby-io")
            self.task.add_done_callback(self._done)
        self._aboard.set()

    def _arrive(self) -> None:
        _current.set(self)
        for rehome in rehomers:
            rehome()

    def _cancel(self, put_off: Callable[[], None], cancelled: Callable[[], None]) -> None:
        self._cancelled = cancelled
        if self.shields:
            put_off()
        else:
            self._cancel_now()

    def _unshield(self) -> None:
        self.shields -= 1
        if not self.shields:
            self._cancel_now()

    def _cancel_now(self) -> None:
        """Cancel its task if that is wanted, which it is once."""
        cancelled, self._cancelled = self._cancelled, None
        if cancelled is not None:
            cancelled()
            if self.task is not None:
                self.task.cancel()

    async def _ride(self) -> None:
        await self

    def __await__(self) -> Generator[Any, Any, None]:
        """Step the coroutine until it leaves for good, as the body of the task."""
        failure: BaseException | None = None
        while True:
            try:
                if failure is None:
                    yielded = self._context.run(self._stepped.send, None)
                else:
                    yielded = self._context.run(self._stepped.throw, failure)
            except BaseException as error:
                # Only code that never reaches the end of its block does this.
                log.error("a coroutine ended inside `async with layby.io`", exc_info=error)
                return
            failure = None
            if yielded is FOR_GOOD:
                return
            if yielded is FOR_A_WHILE:
                yield from self._stay_ashore()
            elif isinstance(yielded, Suspend):
                failure = Error(INSIDE_IO)
            else:
                try:
                    yield yielded
                except GeneratorExit:
                    raise  # The process ends.
                except BaseException as error:  # noqa: BLE001 - it is raised in the coroutine
                    failure = error

    def _stay_ashore(self) -> Generator[Any, Any, None]:
        """Hand the coroutine to a slot, until it boards again."""
        self._aboard.clear()
        self._land()
        cancelled = False
        while not self._aboard.is_set():
            try:
                yield from self._aboard.wait().__await__()
            except asyncio.CancelledError:
                cancelled = True
        if cancelled:
            # A timeout that ran out meanwhile, for one: raised at the next await aboard, where
            # it belongs. Counted once, as whoever cancelled will uncancel once.
            task = asyncio.current_task()
            assert task is not None
            task.uncancel()
            task.cancel()

    def _done(self, task: asyncio.Task[None]) -> None:
        # Not in the task: one that is cancelled before its first step never runs.
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a ride failed", exc_info=error)
        self._land()
        for call in self._calls:
            call.drop()
        self._calls.clear()

    def _land(self) -> None:
        host, self._host = self._host, None
        if host is not None:
            self._calls += host.leave(self._landed)


def _settle_soon(future: asyncio.Future[Any], value: Any, error: BaseException | None) -> None:
    future.get_loop().call_soon_threadsafe(_settle, future, value, error)


def _settle(future: asyncio.Future[Any], value: Any, error: BaseException | None) -> None:
    if future.done():
        return  # Cancelled: nobody waits for it any more.
    if error is None:
        future.set_result(value)
    elif isinstance(error, StopIteration):
        # asyncio refuses it, as it would end the awaiting generator.
        future.set_exception(RuntimeError(f"the function raised {error!r}"))
    else:
        future.set_exception(error)


class Board(LocalWait):
    """Waits for the coroutine that yields it: it is on the loop until it leaves."""

    __slots__ = ("_copied", "_ride")

    # Code that swallows its cancellation must not keep a slot for ever.
    patience: ClassVar[float] = 10.0

    def __init__(self, source: str, ride: Ride | None = None) -> None:
        super().__init__(source)
        self._ride = ride
        self._copied: Context | None = None

    def prepare(self, job: Job, stepped: Coroutine[Any, Any, Any] | None) -> None:
        """See `Suspend.prepare`."""
        super().prepare(job, stepped)
        if job.greenlet is not None:
            # A greenlet stays in the request's context while it is parked.
            self._context = self._copied = copy_context()
        self._ride = self._ride_of(stepped, job)

    def resumed(self) -> None:
        """See `Suspend.resumed`."""
        if self._copied is not None:
            take_over(self._copied, but=_current)

    def outside(self, stepped: Coroutine[Any, Any, Any] | None) -> None:
        """Let it ride while this thread waits, and runs what it wants run in a slot."""
        ride = self._ride_of(stepped, tls.job)
        # The current context is in use, by this very thread.
        context = copy_context()
        host = PlaceCalls()
        ride.board(context, host, lambda: None)
        try:
            host.serve()
        except BaseException:
            # Ctrl-C, for one. The coroutine must be back before it is raised there.
            ride.cancel()
            host.serve()
            raise
        finally:
            take_over(context, but=_current)

    def _ride_of(self, stepped: Coroutine[Any, Any, Any] | None, job: Job | None) -> Ride:
        if self._ride is not None:
            return self._ride
        assert stepped is not None, "only a coroutine can board"
        return Ride(stepped, job)

    def _begin(self) -> None:
        assert self._ride is not None
        self._ride.board(self._context, self.calls, self._end)

    def _stop(self) -> None:
        assert self._ride is not None
        allow = self.calls.allow
        self._ride.cancel(partial(allow, math.inf), partial(allow, self.patience))

    def _shielded(self) -> bool:
        assert self._ride is not None
        return self._ride.shields > 0


def riding() -> Ride | None:
    """The ride whose own task this is; None in slots, in child tasks and elsewhere."""
    ride = _current.get() if _get_running_loop() is not None else None
    return ride if ride is not None and asyncio.current_task() is ride.task else None


def here() -> Ride | None:
    """The ride that this code belongs to, in its task or in a child; None elsewhere."""
    return _current.get() if _loop.is_running_here() else None


class _Io:
    """See `layby.io`."""

    async def __aenter__(self) -> None:
        if _get_running_loop() is None:
            await wait_for(Board(application_line()))
        # Else there is a loop already: an outer block's, that of a child task, or an ASGI
        # server's. Only the ride's own blocks count.
        ride = riding()
        if ride is not None:
            ride.depth += 1

    async def __aexit__(self, kind: type[BaseException] | None, *exc_info: object) -> None:
        ride = riding()
        if ride is None:
            return
        ride.depth -= 1
        if ride.depth:
            return
        try:
            if kind is None and ride.task is not None and ride.task.cancelling():
                # asyncio raises a cancellation at the next await; this is the last one.
                await asyncio.sleep(0)
        finally:
            await wait_for(FOR_GOOD)
            _current.set(None)

    def __repr__(self) -> str:
        return "layby.io"


io = _Io()
"""Run ordinary asyncio code, with no slot held meanwhile.

    async with layby.io:
        async with httpx.AsyncClient() as client:
            answer = await client.get(url)
    order.price = answer.json()["price"]
    order.save()

Inside, the code runs on this process's event loop: asyncio's timeouts, task groups and
queues, anyio, asynchronous clients. Blocking code belongs outside, or into `layby.in_slot`;
Django's ORM refuses to work there. The line after the block is in a slot again, also after
an exception or a `return`. Where the request cannot park, its slot is held meanwhile.
"""


class in_slot_for_a_while:
    """The inverse of `io`: what is inside runs in a slot, also if a ride is under way."""

    __slots__ = ("_ride",)

    async def __aenter__(self) -> None:
        self._ride = riding()
        if self._ride is None:
            return
        try:
            await wait_for(FOR_A_WHILE)
        except BaseException:
            await self._board_again()
            raise

    async def __aexit__(self, *exc_info: object) -> None:
        await self._board_again()

    async def _board_again(self) -> None:
        if self._ride is None:
            return
        try:
            await wait_for(Board(application_line(), self._ride))
        except BaseException:
            if _get_running_loop() is None:
                # Cancelled before it was aboard. What it raises must be raised there, and
                # from now on it boards while its thread waits.
                await wait_for(Board(application_line(), self._ride))
            raise


async def in_slot(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Run blocking code in a slot, from inside `async with layby.io`.

    The slot is any of this process, with its database connection; several can be gathered
    and then run on several slots. The function sees the context variables of the caller. A
    transaction or cursor that it leaves open is closed, and is an `Error`. Outside the
    block it is simply called.

        async with layby.io:
            async for event in feed:
                await layby.in_slot(Event.objects.create, data=event)
    """
    call = partial(function, *args, **kwargs)
    if _get_running_loop() is None:
        return call()
    ride = here()
    if ride is not None:
        return await ride.call(call)
    return await elsewhere(call)


async def elsewhere(function: Callable[[], T]) -> T:
    """Run blocking code under an event loop that is not ours: an ASGI server's, for one."""
    try:
        from asgiref.sync import sync_to_async
    except ImportError:
        return await asyncio.to_thread(function)
    # Django's connections are those of the thread that it runs such code on.
    return await sync_to_async(function)()
