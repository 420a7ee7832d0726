"""What a slot is doing, told for people: the stack of its thread and of what is parked on it.

For a slot that does not come back. The usual reason in greenlet mode is a lock that a
parked request holds: the running request waits for it and keeps the parked one, which
would release it, from resuming.
"""

from __future__ import annotations

import sys
import traceback
from collections import Counter
from collections.abc import Iterable
from types import FrameType

# Of different stacks of parked requests.
_MOST = 10


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


def _stack(frame: FrameType | None) -> str:
    if frame is None:
        return "  (has ended)"
    return "".join(traceback.format_stack(frame)).rstrip()
