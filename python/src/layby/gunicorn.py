"""gunicorn's worker class: `gunicorn -k layby.gunicorn.Worker`, with `LAYBY_LINK` set.

Gunicorn starts, recycles, reloads and ends the processes as it always does; requests come
over the link of `layby serve --link …` instead of a listening socket. The slots of a process
are gunicorn's `threads`. A process that is to end asks the gateway for a drain: it gets no
new requests, answers those it has, parked ones included, and is cut off shortly before
`graceful_timeout`. What waits longer is left to gunicorn and the gateway: heartbeats come from
the main thread, so `timeout` finds a process that hangs, not a request that does.

Gunicorn itself must not listen: `bind = []` in its configuration file. Its access log and its
hooks `pre_request` and `post_request` see no requests, because it serves none.
"""

from __future__ import annotations

import itertools
import os
import select
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

from gunicorn.arbiter import Arbiter
from gunicorn.workers import base

from layby import _locks, _worker
from layby._channel import Channel
from layby._worker import StartError, choose_mode, set_up_log

__all__ = ["Worker"]

# Longest pause between two heartbeats, in seconds.
_BEAT = 1.0
# While there is no gateway, it is tried this often, and missed aloud this often; in seconds.
_RETRY = 0.2
_COMPLAIN = 60.0
# Gunicorn kills at `graceful_timeout`; a process that ends by itself before can say why.
_MARGIN = 1.0

_MODES = ("auto", "coroutine", "greenlet", "wsgi")


class Worker(base.Worker):
    """A process of gunicorn whose threads are slots of a layby gateway."""

    @classmethod
    def check_config(cls, cfg: Any, log: Any) -> None:
        """Called by gunicorn's master once at start; a RuntimeError is one line on stderr."""
        _locks.watch_if_wanted()  # before the application is loaded, here or in a worker
        link = os.environ.get("LAYBY_LINK", "")
        if not link.startswith("unix:"):
            raise RuntimeError(
                "layby.gunicorn.Worker needs LAYBY_LINK=unix:PATH, the link of `layby serve`"
                + (f", not {link}" if link else "")
            )
        mode = _mode()
        if mode not in _MODES:
            raise RuntimeError(f"LAYBY_WORKERS_MODE must be {', '.join(_MODES)}, not {mode}")
        if cfg.address:
            log.warning(
                "nobody answers on gunicorn's own socket, layby's gateway does on its own:"
                " put `bind = []` into gunicorn's configuration file"
            )

    def load_wsgi(self) -> None:
        """Load the application, and decide how its requests wait."""
        # Before the application is imported, and makes its own.
        _locks.watch_if_wanted()
        super().load_wsgi()
        set_up_log(*self.log.error_log.handlers, level=self.log.error_log.level)
        self._name = getattr(self.app, "app_uri", None) or type(self.app).__name__
        try:
            self._how, self._runs = choose_mode(self.wsgi, self._name, _mode())
        except StartError as error:
            if not self.cfg.reload:
                self._give_up(error)
            # Gunicorn's own page with the traceback, perhaps: it is for the developer to see.
            self.log.error("%s", error)
            self._how, self._runs = "wsgi", self.wsgi

    def run(self) -> None:
        """Serve until gunicorn or the gateway has enough."""
        worker = _worker.Worker(
            link=os.environ["LAYBY_LINK"],
            threads=self.cfg.threads,
            name=self._name,
            mode=self._how,
            app=self._runs,
            on_request=self._count() if self.cfg.max_requests > 0 else None,
        )
        control = self._connection(worker)
        if control is None:
            return
        try:
            worker.join(control)
            self._serve(worker)
        except StartError as error:
            self._give_up(error)
        status = worker.end()
        if status:
            sys.exit(status)

    def _connection(self, worker: _worker.Worker) -> Channel | None:
        """The way to the gateway, however long it takes to come up; None when told to end."""
        complain = 0.0
        while self._is_wanted():
            try:
                return worker.connect()
            except OSError as error:
                if time.monotonic() >= complain:
                    complain = time.monotonic() + _COMPLAIN
                    link = os.environ["LAYBY_LINK"]
                    self.log.warning("waiting for a gateway at %s: %s", link, error)
            self._pause(_RETRY)
        return None

    def _serve(self, worker: _worker.Worker) -> None:
        cut = None
        while worker.obey(wait=False):
            if cut is None and not self._is_wanted():
                worker.ask_to_drain()
                cut = time.monotonic() + max(0.0, self.cfg.graceful_timeout - _MARGIN)
            if cut is not None and time.monotonic() > cut:
                self.log.warning("graceful_timeout: what is still parked or running here is cut")
                return
            self._pause(_BEAT, worker)

    def _is_wanted(self) -> bool:
        if self.alive and os.getppid() != self.ppid:
            self.log.info("Parent changed, shutting down: %s", self)
            self.alive = False
        return bool(self.alive)

    def _pause(self, seconds: float, *readable: _worker.Worker) -> None:
        """Show that this process lives, and wait for a signal or something to read."""
        self.notify()
        # `timeout` is half of gunicorn's, and 0 if it has none.
        wait = min(seconds, self.timeout) if self.timeout else seconds
        sources: list[_worker.Worker | int] = [*readable, self.PIPE[0]]
        ready, _, _ = select.select(sources, [], [], wait)
        if self.PIPE[0] in ready:
            os.read(self.PIPE[0], 4096)

    def _count(self) -> Callable[[], None]:
        numbers = itertools.count(1)

        def count() -> None:
            # Exactly one thread gets this number, whoever is the last.
            if next(numbers) == self.max_requests:
                self.log.info("max_requests: this worker ends when it has answered what it has")
                self.alive = False
                os.write(self.PIPE[1], b".")

        return count

    def _give_up(self, error: StartError) -> NoReturn:
        """End gunicorn as a whole: the next process would fail in the same way."""
        self.log.critical("%s", error)
        sys.exit(Arbiter.WORKER_BOOT_ERROR)


def _mode() -> str:
    # The gateway's name for the same thing.
    return os.environ.get("LAYBY_WORKERS_MODE", "auto")
