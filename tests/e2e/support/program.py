"""A child process whose output is kept, and which ends with its `with` block."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

GRACE = 20.0


def until(what: str, check: Callable[[], Any], seconds: float, every: float = 0.02) -> Any:
    """Ask until the answer is true; the answer. Fails the test when time is over."""
    deadline = time.monotonic() + seconds
    while not (answer := check()):
        if time.monotonic() > deadline:
            pytest.fail(f"after {seconds:g} s: {what}")
        time.sleep(every)
    return answer


class Program:
    """One process, in a group of its own, so that nothing of it outlives the test."""

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        *,
        environment: Mapping[str, str],
        directory: Path,
        log: Path,
    ) -> None:
        self.name = name
        self.log_path = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                command,
                cwd=directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def lines_with(self, *words: str) -> list[str]:
        return [line for line in self.log.splitlines() if all(word in line for word in words)]

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self, seconds: float = GRACE) -> int:
        """Its exit status. Fails the test when it does not end by itself."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            pytest.fail(f"{self.name} did not end within {seconds:g} s:\n{self.tail()}")

    def wait_for(self, words: str, seconds: float = GRACE) -> str:
        """The first line of its output with these words."""

        def found() -> str | None:
            if lines := self.lines_with(words):
                return lines[0]
            if self.process.poll() is not None:
                pytest.fail(f"{self.name} ended by itself:\n{self.tail()}")
            return None

        return str(until(f"{self.name} did not say {words!r}", found, seconds))

    def tail(self) -> str:
        return self.log[-6000:]

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(GRACE)
        except subprocess.TimeoutExpired:
            print(f"{self.name} did not end, so it is killed", file=sys.stderr)
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # As it should be: nothing is left of its group.
        self.process.wait()
