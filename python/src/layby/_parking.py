"""May this request park now, and what is done when it leaves its thread and comes back.

The same for every mode that parks; how a request is suspended is their own business. All
of it runs on the slot's thread, in the request's context.
"""

from __future__ import annotations

import os

from layby import _hooks, _locks
from layby._exceptions import ParkRefused
from layby._job import Job, Obstacle, before_resume, on_leave, park_checks, slot_closers
from layby._locals import ThreadLocals


class Parking:
    """What decides on parks, and carries state over them."""

    def __init__(self, locals: ThreadLocals) -> None:
        self._locals = locals
        self._strict = os.environ.get("LAYBY_STRICT") == "1"

    def obstacle(self, job: Job) -> Obstacle | None:
        """Why this job cannot park now; None when it can.

        Raises `ParkRefused` in strict mode, for what the application should not do.
        """
        if job.cancelled:
            return Obstacle("unsupported", "the request is being ended")
        if job.answered:
            return Obstacle("mode", "its answer is over")
        if job.inline:
            return Obstacle(job.inline[-1], "called from synchronous code")
        obstacle = self._check(job)
        if obstacle is None:
            self._report_thread_state()
        return obstacle

    def leave(self, job: Job) -> Obstacle | None:
        """Put away what is the job's on this thread; the obstacle that came up, if any."""
        if _hooks.any_on_park():
            # The hooks may have left a cursor or a transaction open.
            obstacle = _hooks.run_on_park(job) or self._check(job)
            if obstacle is not None:
                _hooks.run_on_resume(job)
                return obstacle
        for hook in on_leave:
            hook(job)
        self._locals.leave(job)
        return None

    def enter(self, job: Job) -> None:
        """Bring it back, on the thread where the job goes on.

        Raises `Cancelled` when a hook of the application failed.
        """
        self._locals.enter(job)
        for hook in before_resume:
            hook(job)
        _hooks.run_on_resume(job)

    def leave_branch(self, job: Job) -> None:
        """The call that ran here as `job` is over: nothing of it stays on this thread."""
        try:
            if _hooks.run_on_park(job) is not None:
                # What could not be put away must go all the same.
                for closer in slot_closers:
                    closer()
            for hook in on_leave:
                hook(job)
        finally:
            self._locals.end()

    def _check(self, job: Job) -> Obstacle | None:
        for check in park_checks:
            obstacle = check(job)
            if obstacle is not None:
                if self._strict and obstacle.reason in ("transaction", "cursor"):
                    raise ParkRefused(f"cannot park here ({obstacle.reason}): {obstacle.detail}")
                return obstacle
        return None

    def _report_thread_state(self) -> None:
        """Report what the thread holds for the request and would show to others."""
        unnamed = self._locals.unnamed()
        if unnamed and self._strict:
            raise ParkRefused(
                f"cannot park here: {', '.join(unnamed)} holds state of the request and is not "
                "in [workers] thread_locals"
            )
        held = _locks.held()
        if held and self._strict:
            raise ParkRefused(f"cannot park here: it holds {', '.join(held)}")
