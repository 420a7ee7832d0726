"""`layby run --reload`: tells the gateway when a file of the application has changed.

One supervised worker looks after the files of all. A change is told as an operator would
tell it, by a SIGHUP to the gateway, so what happens then is an ordinary reload: no request
is lost, and code that cannot be imported leaves the old workers in place, this one and its
watch included, until the next change.

Watched are the loaded modules, wherever they are, and in the current directory what looks
like source or a template, loaded or not: a module that failed to import is not loaded.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator

log = logging.getLogger("layby")

# Pause between two looks, in seconds; a look may take a tenth of the time at most.
_PAUSE = 0.5
_SHARE = 10

_SUFFIXES = (".py", ".html", ".htm", ".jinja", ".jinja2", ".j2", ".mo", ".toml", ".env")
_SKIPPED = {"node_modules", "__pycache__"}

Times = dict[str, int]


def watch_if_asked() -> None:
    """Watch from here on, if the gateway has asked this process to."""
    # Not for the application and what it starts.
    gateway = os.environ.pop("LAYBY_RELOAD", None)
    if gateway is None:
        return
    watch = Watch(os.getcwd())
    # A daemon: the process need not wait for it.
    threading.Thread(
        target=watch.run, args=(int(gateway),), name="layby-reload", daemon=True
    ).start()


class Watch:
    """What is known of the application's files."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        # From before the import, so that a change during it is seen.
        self._known = self._look()
        self._changed: set[str] = set()

    def run(self, gateway: int) -> None:
        """Look again and again, for ever."""
        pause = _PAUSE
        while True:
            time.sleep(pause)
            began = time.monotonic()
            changed = self.settled()
            pause = max(_PAUSE, _SHARE * (time.monotonic() - began))
            if changed:
                log.info("reloading: %s changed", ", ".join(changed))
                try:
                    os.kill(gateway, signal.SIGHUP)
                except ProcessLookupError:
                    return  # The control connection says so too, to the main thread.

    def settled(self) -> list[str]:
        """The files that have changed, once nothing more changes: editors and git take a while."""
        now = self._look()
        # A file that was not there is of no use to anybody yet, or came with a change.
        fresh = {file for file, at in now.items() if self._known.get(file, at) != at}
        self._known |= now
        self._changed |= fresh
        if fresh or not self._changed:
            return []
        changed = sorted(os.path.relpath(file, self._folder) for file in self._changed)
        self._changed.clear()
        return changed

    def _look(self) -> Times:
        times: Times = {}
        for file in {*_loaded(), *_in(self._folder)}:
            try:
                times[file] = os.stat(file).st_mtime_ns
            except OSError:
                pass  # Being replaced, or gone: what is loaded of it stays.
        return times


def _loaded() -> Iterator[str]:
    for module in list(sys.modules.values()):
        file = getattr(module, "__dict__", {}).get("__file__")
        if isinstance(file, str):
            yield file


def _in(folder: str) -> Iterator[str]:
    for path, folders, files in os.walk(folder):
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".")
            and name not in _SKIPPED
            # A virtual environment; what is loaded of it is watched as a module.
            and not os.path.exists(os.path.join(path, name, "pyvenv.cfg"))
        ]
        for name in files:
            if name.endswith(_SUFFIXES):
                yield os.path.join(path, name)
