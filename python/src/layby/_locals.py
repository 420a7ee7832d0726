"""threading.local objects that hold request state, carried over a park.

Those named in `[workers] thread_locals` are swapped: saved and emptied when a request
leaves its thread, restored when it goes on elsewhere. Unnamed ones that change while
a request runs are found in debug and strict mode only, since that takes a search.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
import threading
from collections.abc import Iterable
from typing import Any

from layby._job import Job

log = logging.getLogger("layby")

# Modules whose thread-locals are about the thread, or are seen to by layby.django.
_NOT_REQUEST_STATE = frozenset(sys.stdlib_module_names) | {
    "asgiref",
    "certifi",
    "django",
    "greenlet",
    "httpx",
    "layby",
    "psycopg",
    "psycopg_pool",
    "urllib3",
}


class UnknownLocal(Exception):
    """A name in `thread_locals` that is no threading.local."""


class ThreadLocals:
    """The named thread-locals, and (if `watch`) what the unnamed ones held at the start."""

    def __init__(self, names: Iterable[str], *, watch: bool) -> None:
        self._named = {name: _resolve(name) for name in names}
        self._watch = watch
        self._at_start = threading.local()
        self._reported: set[str] = set()

    @classmethod
    def from_environment(cls, names: Iterable[str]) -> ThreadLocals:
        """With the watch on in debug (LAYBY_DEBUG=1) and strict mode (LAYBY_STRICT=1)."""
        watch = "1" in (os.environ.get("LAYBY_DEBUG"), os.environ.get("LAYBY_STRICT"))
        return cls(names, watch=watch)

    def begin(self) -> None:
        """A new request starts on this thread: it finds the named ones empty."""
        for local in self._named.values():
            _empty(local)
        self._snapshot()

    def leave(self, job: Job) -> None:
        """The job parks: put away what is its own."""
        for name, local in self._named.items():
            job.locals[name] = dict(local.__dict__)
            _empty(local)

    def enter(self, job: Job) -> None:
        """The job goes on, on this thread: bring back what is its own."""
        for name, local in self._named.items():
            _empty(local)
            held = job.locals.pop(name, None)
            if held is not None:
                local.__dict__.clear()
                local.__dict__.update(held)
        self._snapshot()

    def end(self) -> None:
        """A request is over: nothing of it stays on this thread."""
        for local in self._named.values():
            _empty(local)

    def unnamed(self) -> list[str]:
        """Names of unnamed thread-locals that changed since this step began.

        Each is logged the first time. Empty when not watching.
        """
        if not self._watch:
            return []
        before: dict[str, dict[str, int]] = self._at_start.contents
        changed = [name for name, held in self._contents().items() if held != before.get(name, {})]
        for name in changed:
            if name not in self._reported:
                self._reported.add(name)
                log.warning(
                    "thread-local %s holds state of a request that parks: name it in [workers] "
                    "thread_locals, or other requests will see that state",
                    name,
                )
        return changed

    def _snapshot(self) -> None:
        if self._watch:
            self._at_start.contents = self._contents()

    def _contents(self) -> dict[str, dict[str, int]]:
        """What the unnamed ones hold on this thread; by identity, for == may do anything."""
        named = {id(local) for local in self._named.values()}
        return {
            name: {key: id(value) for key, value in local.__dict__.items()}
            for name, local in _find_all().items()
            if id(local) not in named
        }


def _find_all() -> dict[str, threading.local]:
    """The module-level thread-locals of the application and its libraries, by name."""
    found: dict[int, tuple[str, threading.local]] = {}
    for module_name, module in list(sys.modules.items()):
        if module_name.partition(".")[0] in _NOT_REQUEST_STATE:
            continue
        for attribute, value in list(getattr(module, "__dict__", {}).items()):
            # By its type: isinstance() asks the value for its class, and a lazy object, such as
            # Django's settings where there are none, then fails to be made.
            if issubclass(type(value), threading.local):
                # Imported elsewhere under the same or another name: one object, one name.
                found.setdefault(id(value), (f"{module_name}.{attribute}", value))
    return dict(found.values())


def _empty(local: threading.local) -> None:
    """Make it as a thread finds it that has never used it."""
    local.__dict__.clear()
    kind: Any = type(local)
    if kind.__init__ is not object.__init__ and kind is not threading.local:
        # A subclass sets up every new thread's part in its __init__. One that was made
        # with arguments cannot be run again, and stays empty.
        try:
            kind.__init__(local)
        except TypeError:
            local.__dict__.clear()


def _resolve(name: str) -> threading.local:
    """The object that "package.module.attribute" names."""
    module_name, _, attribute = name.rpartition(".")
    try:
        value = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UnknownLocal(f"thread_locals: there is no {name}: {error}") from error
    if not isinstance(value, threading.local):
        raise UnknownLocal(f"thread_locals: {name} is no threading.local")
    return value
