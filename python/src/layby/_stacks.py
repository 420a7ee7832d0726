"""What a slot is doing, told for people: the stack of its thread and of what is parked on it.

Into the log when the gateway finds that a slot does not come back, with the lines of source;
back to the gateway when a person asks there, with nothing but files, lines and functions.

The usual reason why one does not come back, in greenlet mode, is a lock that a
parked request holds: the running request waits for it and keeps the parked one, which
would release it, from resuming. When code keeps the interpreter to itself, only a signal
gets through, and the stacks of all threads are what there is.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Iterable
from types import FrameType
from typing import Any

# Of different stacks of parked requests.
_MOST = 10

# Of one stack: the innermost calls. A recursion that has gone wrong is a thousand deep.
_DEEPEST = 200

# Whether SIGUSR2 is ours. The gateway signals only to processes that it has started itself.
dumps_on_signal = False


def dump_on_signal() -> None:
    """Show at SIGUSR2 what all threads do, unless the application has a use for that signal."""
    global dumps_on_signal
    if os.environ.get("LAYBY_TOKEN") and signal.getsignal(signal.SIGUSR2) == signal.SIG_DFL:
        faulthandler.register(signal.SIGUSR2, file=2, all_threads=True)
        dumps_on_signal = True


def describe(thread: int | None, parked: Iterable[FrameType | None]) -> str:
    """The stack of the thread with this identity, and the stacks of parked requests, grouped."""
    frame = sys._current_frames().get(thread) if thread is not None else None
    lines = ["its thread:", _stack(frame)]
    stacks = Counter(_stack(each) for each in parked)
    for stack, count in stacks.most_common(_MOST):
        lines += [f"parked on it, {count} request{'s' if count > 1 else ''}:", stack]
    if len(stacks) > _MOST:
        lines.append(f"and parked requests with {len(stacks) - _MOST} other stacks")
    return "\n".join(lines)


def tell(thread: int | None, parked: Iterable[FrameType | None]) -> bytes:
    """The same as JSON, for the head of a TOLD frame."""
    frame = sys._current_frames().get(thread) if thread is not None else None
    stacks = Counter(tuple(_calls(each)) for each in parked)
    told = {
        "thread": _named(_calls(frame)) if frame is not None else None,
        "parked": [
            {"requests": count, "stack": _named(calls)}
            for calls, count in stacks.most_common(_MOST)
        ],
    }
    return json.dumps(told).encode()


def _calls(frame: FrameType | None) -> list[tuple[str, int, str]]:
    """The innermost call last."""
    calls: list[tuple[str, int, str]] = []
    while frame is not None and len(calls) < _DEEPEST:
        code = frame.f_code
        calls.append((code.co_filename, frame.f_lineno or code.co_firstlineno, code.co_qualname))
        frame = frame.f_back
    calls.reverse()
    return calls


def _named(calls: Iterable[tuple[str, int, str]]) -> list[dict[str, Any]]:
    return [{"file": file, "line": line, "function": name} for file, line, name in calls]


def _stack(frame: FrameType | None) -> str:
    if frame is None:
        return "  (has ended)"
    return "".join(traceback.format_stack(frame)).rstrip()
