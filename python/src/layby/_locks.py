"""RLocks held over a park, found in debug and strict mode.

An `RLock` belongs to a thread. Held over a park it keeps nobody out on its own thread,
and cannot be released on another. Since it says whether this thread owns it, those made
while the watch is on are asked at every park.

A plain `Lock` does not say who holds it, and is not watched: one that is held over a
park blocks the slot that the request has to resume on, which the gateway notices, and
has the worker log the stacks of both.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
from typing import Any
from weakref import WeakKeyDictionary

from layby import _source

log = logging.getLogger("layby")

# Where each was made. None while the watch is off.
_made: WeakKeyDictionary[Any, str] | None = None
_reported: set[str] = set()


@functools.cache
def watch_if_wanted() -> None:
    """Start to watch, in debug (LAYBY_DEBUG=1) and strict mode (LAYBY_STRICT=1).

    Before the application is imported: only RLocks made from then on are seen.
    """
    if "1" in (os.environ.get("LAYBY_DEBUG"), os.environ.get("LAYBY_STRICT")):
        watch()


def watch() -> None:
    """Start to watch."""
    global _made
    if _made is not None:
        return
    made: WeakKeyDictionary[Any, str] = WeakKeyDictionary()
    _made = made
    original: Any = threading.RLock

    def make(*args: Any, **kwargs: Any) -> Any:
        lock = original(*args, **kwargs)
        made[lock] = _source.application_line()
        return lock

    threading.RLock = make  # type: ignore[assignment]


def held() -> list[str]:
    """The RLocks that this thread owns, by where they were made; each is logged once."""
    if _made is None:
        return []
    owned = [f"an RLock made at {line}" for lock, line in list(_made.items()) if lock._is_owned()]
    for lock in owned:
        if lock not in _reported:
            _reported.add(lock)
            log.warning(
                "%s parks while it holds %s: on its own thread it keeps no other request out, "
                "and on another it cannot be released",
                _source.application_line(),
                lock,
            )
    return owned
