"""`layby.on_park` and `layby.on_resume`: the application's own state over a park.

For state that belongs to a database connection or a thread, and so neither travels with
a request nor may be left to the next one: a tenant's schema, session settings, values
that some library keeps by thread. `on_park` puts it away, `on_resume` brings it back.

Decided here is what becomes of a hook that fails. State that could not be put away must
not be met by other requests: the request waits in place instead, and the hooks for
resuming run at once. State that could not be brought back must not be missed by code
that catches `Exception` and goes on: the request is ended, by `Cancelled`, and answered
with 500.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

from layby._exceptions import Cancelled
from layby._job import Job, Obstacle

log = logging.getLogger("layby")

Hook = Callable[[dict[str, Any]], object]
H = TypeVar("H", bound=Hook)

_on_park: list[Hook] = []
_on_resume: list[Hook] = []


def on_park(hook: H) -> H:
    """Call `hook` with the request's environ before every park.

    On the slot's thread, in the request's context, in the order of registration; not
    for waits in place, which share the slot with nobody. It may query the database, and
    must not wait for anything of layby. If it raises, the request waits in place.

        @layby.on_park
        def leave_schema(environ):
            connection.cursor().execute("RESET search_path")
    """
    _on_park.append(hook)
    return hook


def on_resume(hook: H) -> H:
    """Call `hook` with the request's environ after every park, also one that was cancelled.

    On the slot's thread, in the request's context, in the order of registration. If it
    raises, the request is ended and answered with 500.
    """
    _on_resume.append(hook)
    return hook


def any_on_park() -> bool:
    """Whether there are hooks for parking."""
    return bool(_on_park)


def run_on_park(job: Job) -> Obstacle | None:
    """Put state away; the reason not to park when that failed."""
    for hook in _on_park:
        try:
            hook(job.environ)
        except Exception as error:
            log.error("on_park hook %s failed", _name(hook), exc_info=error)
            return Obstacle("unsupported", f"on_park hook {_name(hook)} failed: {error!r}")
    return None


def run_on_resume(job: Job) -> None:
    """Bring state back. Raises `Cancelled` when that failed: the request must not go on."""
    for hook in _on_resume:
        try:
            hook(job.environ)
        except Exception as error:
            log.error(
                "on_resume hook %s failed, so the request is ended", _name(hook), exc_info=error
            )
            job.cancelled = True
            job.failure = error
            raise Cancelled(f"on_resume hook {_name(hook)} failed") from error


def _name(hook: Hook) -> str:
    return f"{hook.__module__}.{getattr(hook, '__qualname__', repr(hook))}"
