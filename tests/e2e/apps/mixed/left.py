"""What is alive in a worker process while nobody asks anything of it.

Told on SIGUSR1, as a request to be told by would itself be alive.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import threading
import types
from pathlib import Path
from typing import Any

from django.core.handlers.wsgi import WSGIRequest
from greenlet import greenlet
from layby._job import Job


def tell(*_: object) -> None:
    """Write it to a file of the folder `MIXED_LEFT`, named after this process."""
    for _round in range(3):
        gc.collect()
    things: list[Any] = gc.get_objects()
    loops = [each for each in things if isinstance(each, asyncio.AbstractEventLoop)]
    told = {
        "of requests": {
            "requests": sum(isinstance(each, WSGIRequest) for each in things),
            "jobs": sum(type(each) is Job for each in things),
            "coroutines": sum(type(each) is types.CoroutineType for each in things),
            "generators": sum(type(each) is types.AsyncGeneratorType for each in things),
            "greenlets": sum(isinstance(each, greenlet) and _is_at_work(each) for each in things),
            "tasks": sum(len(asyncio.all_tasks(each)) for each in loops if not each.is_closed()),
        },
        "threads": sorted(each.name for each in threading.enumerate()),
        "descriptors": sorted(_descriptors()),
    }
    file = Path(os.environ["MIXED_LEFT"]) / str(os.getpid())
    fresh = file.with_suffix(".new")
    fresh.write_text(json.dumps(told))
    fresh.replace(file)


def _is_at_work(carrier: greenlet) -> bool:
    """Whether it is in the middle of a request. Idle ones wait in `_carry` for their next."""
    frame = carrier.gr_frame
    return frame is not None and frame.f_code.co_name not in ("_carry", "_switch")


def _descriptors() -> list[str]:
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{name}"))
        except FileNotFoundError:
            pass  # That of the folder itself.
    return found
