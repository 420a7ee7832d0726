"""Processes that are started for a benchmark and end with it, whatever happens."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

GRACE = 10.0
SET_PARENT_DEATH_SIGNAL = 1


class Failed(Exception):
    """A benchmark cannot be run; the message is for people."""


class Process:
    """A program that runs until the `with` block ends, on any core or on some only. What it says
    goes to `log`."""

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        *,
        environment: Mapping[str, str] | None = None,
        directory: Path | None = None,
        cores: Collection[int] | None = None,
        reads: bool = False,
    ) -> None:
        self.name = Path(command[0]).name
        self.log = log

        def prepare() -> None:
            _end_with_parent()
            if cores is not None:
                os.sched_setaffinity(0, cores)

        with log.open("wb") as file:
            self.popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if reads else file,
                stderr=file if reads else subprocess.STDOUT,
                env=os.environ | (environment or {}),
                cwd=directory,
                # So that the Ctrl-C of a terminal reaches only us, and we end them in order.
                start_new_session=True,
                preexec_fn=prepare,
                text=True,
            )
        self.pid = self.popen.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()

    def line(self) -> str:
        """The next line it prints."""
        assert self.popen.stdout is not None
        line = self.popen.stdout.readline().strip()
        if not line:
            raise Failed(f"{self.name} ended: {self.last_words()}")
        return line

    def last_words(self) -> str:
        return self.log.read_text(errors="replace").strip()[-2000:]

    def end(self) -> None:
        """Ends it and whatever it started. What is measured is over, so there is no drain."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):  # it has ended by itself
                os.killpg(self.pid, number)
            try:
                self.popen.wait(GRACE if number == signal.SIGTERM else None)
            except subprocess.TimeoutExpired:
                continue
        if self.popen.stdout is not None:
            self.popen.stdout.close()


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
