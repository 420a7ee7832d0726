"""What the kernel knows of processes: their CPU time, their memory, their children.

CPU time comes from each process's own clock, which counts nanoseconds on a core, those of
threads that have ended included; the ticks of `ps` and `top` are 10 ms.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

PROC = Path("/proc")


def cpu_seconds(pid: int) -> float:
    """CPU time of a process so far, all its threads together."""
    # clock_getcpuclockid(3) computes the same; Python has it for threads only.
    return time.clock_gettime(~pid << 3 | 2)


def cpu_seconds_of(pids: Iterable[int]) -> float:
    return sum(cpu_seconds(pid) for pid in pids)


def resident_bytes(pids: Iterable[int]) -> int:
    pages = sum(int((PROC / str(pid) / "statm").read_text().split()[1]) for pid in pids)
    return pages * os.sysconf("SC_PAGE_SIZE")


def descendants(pid: int) -> list[int]:
    """Children, and theirs."""
    children: dict[int, list[int]] = {}
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue  # it ended while we looked
            parent = int(stat.rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(entry.name))
    found, at = [pid], 0
    while at < len(found):
        found += children.get(found[at], [])
        at += 1
    return found[1:]


def busy_seconds() -> float:
    """CPU time that all cores together have spent on anything, as the kernel's ticks say."""
    first = (PROC / "stat").read_text().splitlines()[0]
    user, nice, system, _idle, _wait, irq, softirq, steal = map(int, first.split()[1:9])
    ticks = user + nice + system + irq + softirq + steal
    return ticks / os.sysconf("SC_CLK_TCK")


def busy(seconds: float) -> float:
    """Share of all cores that was busy over the next seconds."""
    before = busy_seconds()
    time.sleep(seconds)
    return (busy_seconds() - before) / seconds / cores()


@contextmanager
def awake() -> Iterator[None]:
    """Keeps every core from going to sleep, with work that gives way to any other.

    A core that has nothing to do halts, and the next who wakes it pays: on virtual machines,
    where its host has to be asked, more than for all else that it came for.
    """
    spinners = [subprocess.Popen([sys.executable, "-c", _SPIN, str(core)]) for core in _cores()]
    try:
        yield
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.wait()


_SPIN = """
import os, sys
os.sched_setaffinity(0, {int(sys.argv[1])})
os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
while True:
    pass
"""


def cores() -> int:
    return len(_cores())


def halves() -> tuple[frozenset[int] | None, frozenset[int] | None]:
    """A core for what is measured and the others for all else; any if there is only one."""
    first, *others = sorted(_cores())
    return (frozenset({first}), frozenset(others)) if others else (None, None)


def _cores() -> set[int]:
    return os.sched_getaffinity(0)


def memory_gib() -> int:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)
