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
from weakref import ref

from layby import _source

log = logging.getLogger("layby")

# Each by its id, with where it was made. None while the watch is off. Threads add and remove by
# single operations of the dict, which are atomic.
_made: dict[int, tuple[ref[Any], str]] | None = None
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
    made: dict[int, tuple[ref[Any], str]] = {}
    _made = made
    original: Any = threading.RLock

    def make(*args: Any, **kwargs: Any) -> Any:
        lock = original(*args, **kwargs)
        key = id(lock)
        made[key] = ref(lock, lambda _: made.pop(key, None)), _source.application_line()
        return lock

    threading.RLock = make  # type: ignore[assignment]


def held() -> list[str]:
    """The RLocks that this thread owns, by where they were made; each is logged once."""
    if _made is None:
        return []
    made = [(reference(), line) for reference, line in list(_made.values())]
    owned = [f"an RLock made at {line}" for lock, line in made if lock and lock._is_owned()]
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
