"""greenlet mode: a request is a greenlet, parked by switching back to its slot's thread.

Any call stack can park so: synchronous views, Flask, generators that make an answer,
whatever asks for a `.result()` far below. The stack belongs to the thread that began
it. A parked request therefore resumes on its own slot (flag PINNED), and until then
shares the thread with others: what the thread holds for it is swapped or refused by
`_parking`, and connections are closed only by those who know of it (`tls.parked`).

Each slot's thread runs its loop in the *hub*, the thread's own greenlet; `begin`, `resume`
and `cancel` run there, and return once the request has parked or is over. Everything of
a request, PARK included, is done in its own greenlet and context.
"""

from __future__ import annotations

import logging
from collections.abc import Coroutine, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any

from greenlet import getcurrent, greenlet
from layby._answer import Answer
from layby._channel import Closed
from layby._drive import wait_in_place
from layby._exceptions import Cancelled
from layby._job import Job, Obstacle, Suspend, tls
from layby._local import beside, run_asked_for
from layby._locals import ThreadLocals
from layby._parking import Parking
from layby._wire import FLAG_PINNED, FLAG_SHIELDED, PARK, READY, WireError, encode
from layby._wsgi import WsgiApp, WsgiRunner, finish

if TYPE_CHECKING:
    from layby._slot import Slot

log = logging.getLogger("layby")

# How many requests may be parked in a process. Each keeps a C stack and its frames, 25 to
# 45 KiB; one more waits in place.
MAX_PARKED = 1000
# How many greenlets a slot keeps for its next requests: a new one costs as much again as
# an empty request.
_MAX_IDLE = 64


class GreenletRunner:
    """Runs one WSGI application, each request in a greenlet of its slot."""

    parks = True

    def __init__(self, app: WsgiApp, locals: ThreadLocals, *, max_parked: int = MAX_PARKED) -> None:
        self._wsgi = WsgiRunner(app, locals)
        self._locals = locals
        self._parking = Parking(locals)
        self._max_parked = max_parked
        # By slot number; each is changed by its slot's thread only.
        self._hubs: dict[int, _Hub] = {}

    def __repr__(self) -> str:
        return f"<GreenletRunner {self.parked} parked>"

    @property
    def parked(self) -> int:
        """How many requests are parked in this process."""
        return sum(len(hub.parked) for hub in list(self._hubs.values()))

    def stacks(self, slot: int) -> Iterator[FrameType | None]:
        """Where the requests wait that are parked on this slot; callable from any thread."""
        hub = self._hubs.get(slot)
        for job in list(hub.parked.values()) if hub is not None else ():
            carrier = job.greenlet
            if carrier is not None:  # It may end at any moment.
                yield carrier.gr_frame

    def open(self, slot: Slot) -> None:
        """This thread becomes the hub of a slot."""
        self._hubs[slot.number] = _Hub()
        tls.park = lambda job, suspend, stepped: self._wait(slot, job, suspend, stepped)

    def begin(self, slot: Slot, job: Job) -> None:
        """Run a new request until it answers or parks."""
        self._locals.begin()
        hub = self._hubs[slot.number]
        if hub.idle:
            job.greenlet = hub.idle.pop()
        else:
            job.greenlet = greenlet(self._carry, hub.greenlet)
            # To where it waits for a request. Not with one, for what a greenlet is started
            # with it keeps.
            job.greenlet.switch(slot, hub)
        _switch(job, job)

    def finish(self, slot: Slot, job: Job, left_to_do: Coroutine[Any, Any, None]) -> None:
        """Do what is left to do once another server's answer is over; it waits in place."""
        finish(slot, job, left_to_do, self._parking.enter)
        self._locals.end()

    def unpark(self, request: int, epoch: int) -> Job:
        """Take a request that is parked on this thread. WireError when there is none such."""
        waiter: Any = tls.waiter
        hub = self._hubs[waiter.number]
        job = hub.parked.get(request)
        if job is None or epoch != job.epoch + 1:
            raise WireError("kind", f"no request {request} is parked here for epoch {epoch}")
        hub.remove(job)
        job.epoch = epoch
        return job

    def resume(self, slot: Slot, job: Job, value: Any) -> None:
        """Go on with a request, given what came of what it waited for."""
        _switch(job, value)

    def cancel(self, slot: Slot, job: Job) -> None:
        """End a request whose client has left while it was parked."""
        job.cancelled = True
        assert job.awaited is not None
        if job.awaited.abandon(beside(job, self._parking)):
            _switch(job, None)
            return
        # A coroutine that it steps is still running elsewhere: nothing of it may be run.
        self._hubs[slot.number].stuck.append(job)
        job.end()
        Answer(slot.channel, job).ready()

    def run(self, slot: Slot, request: int, epoch: int, number: int) -> None:
        """Run what a parked request, of any slot, asked for with CALL."""
        hubs = list(self._hubs.values())
        parked = (hub.parked.get(request) for hub in hubs)
        job = next((job for job in parked if job is not None), None)
        run_asked_for(job, epoch, number, slot.number, self._parking)
        slot.channel.send(encode(READY, request=request, epoch=epoch))

    def close(self, slot: Slot) -> None:
        """End what is parked on this slot: no other thread can."""
        tls.park = None
        hub = self._hubs.get(slot.number)
        if hub is None:
            return
        for job in list(hub.parked.values()):
            hub.remove(job)
            tls.job = job
            try:
                self.cancel(slot, job)
            except (Closed, WireError):
                pass  # Nobody waits for what it says.
            finally:
                tls.job = None
        while hub.idle:
            hub.idle.pop().throw()
        del self._hubs[slot.number]

    def _carry(self, slot: Slot, hub: _Hub) -> BaseException | None:
        """What every greenlet runs: one request after the other.

        Nothing may be raised out of it, for that would end the slot's thread; what should
        end it is handed over.
        """
        while True:
            job = hub.greenlet.switch(None)
            failure: BaseException | None = None
            try:
                job.context.run(self._wsgi.answer, slot, job)
            except BaseException as error:  # noqa: BLE001 - see above
                failure = error
            self._locals.end()
            carrier, job.greenlet = job.greenlet, None
            if failure is not None or len(hub.idle) >= _MAX_IDLE:
                return failure
            hub.idle.append(carrier)
            # An idle greenlet keeps nothing of its last request alive.
            del job, carrier

    def _wait(
        self,
        slot: Slot,
        job: Job,
        suspend: Suspend,
        stepped: Coroutine[Any, Any, Any] | None,
    ) -> Any:
        """Wait for `suspend`, called by the request: parked if that is safe, else in place."""
        obstacle = self._parking.obstacle(job) or self._obstacle(job)
        if obstacle is None:
            head, body = suspend.encode(limit=slot.max_plan)
            obstacle = self._parking.leave(job)
        if obstacle is not None:
            return wait_in_place(slot, job, suspend, stepped, obstacle.reason, obstacle.detail)
        suspend.prepare(job, stepped)
        hub = self._hubs[slot.number]
        job.awaited = suspend
        hub.add(job)
        flags = suspend.flags | FLAG_PINNED | (FLAG_SHIELDED if job.shields else 0)
        frame = encode(
            PARK, flags=flags, request=job.request, epoch=job.epoch, head=head, body=body
        )
        try:
            slot.channel.send(frame)
        except Closed as error:
            # The gateway never got it, so nobody will ever resume it.
            hub.remove(job)
            raise slot.lost(job, error) from error
        suspend.parked()
        value = hub.greenlet.switch(None)
        # Before anything else, also for a request that is being ended: its `finally`
        # blocks need their state.
        self._parking.enter(job)
        if job.cancelled:
            raise Cancelled("the client has left")
        return value

    def _obstacle(self, job: Job) -> Obstacle | None:
        """What greenlets add to the reasons not to park."""
        if job.greenlet is not getcurrent():
            return Obstacle("unsupported", "it runs in a greenlet of the application's own")
        if job.lent:
            return Obstacle("unsupported", "called below `async_to_sync`, whose event loop waits")
        if self.parked >= self._max_parked:
            return Obstacle("unsupported", f"{self._max_parked} requests are parked already")
        return None


class _Hub:
    """A slot's thread, the requests parked on it, and greenlets without a request."""

    def __init__(self) -> None:
        self.greenlet = getcurrent()
        self.parked: dict[int, Job] = {}
        self.idle: list[greenlet] = []
        # Never to go on. Dropped, they would be run to their end.
        self.stuck: list[Job] = []

    def add(self, job: Job) -> None:
        self.parked[job.request] = job
        tls.parked = len(self.parked)

    def remove(self, job: Job) -> None:
        del self.parked[job.request]
        tls.parked = len(self.parked)


def _switch(job: Job, value: Any) -> None:
    """Let a request run, from the hub, until it parks or is over."""
    failure = job.greenlet.switch(value)
    if failure is not None:
        raise failure
