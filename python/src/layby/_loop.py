"""The event loop of this process, on which blocks of `async with layby.io` run.

One thread, started when it is first needed; a daemon, since it has nothing of its own
to finish. Who may use the loop, and for what, is decided in `_ride`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading

log = logging.getLogger("layby")

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None


def loop() -> asyncio.AbstractEventLoop:
    """The loop, running."""
    global _loop
    with _lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_run, args=(_loop,), name="layby-loop", daemon=True).start()
        return _loop


def _run(loop: asyncio.AbstractEventLoop) -> None:
    while True:
        try:
            loop.run_forever()
            log.error("the event loop of layby.io was stopped by the application: it runs on")
        except BaseException as error:
            # asyncio lets a SystemExit out of the loop. It was one request's, and there are others.
            log.error("out of a task on the event loop came", exc_info=error)


def is_running_here() -> bool:
    """Whether this code runs on that loop."""
    running = asyncio._get_running_loop()
    return running is not None and running is _loop


def _forget() -> None:
    """A forked child has the loop, but not its thread."""
    global _lock, _loop
    _lock, _loop = threading.Lock(), None


os.register_at_fork(after_in_child=_forget)
