"""Nothing of a request is left when it is over: no greenlet, thread, descriptor or job."""

from __future__ import annotations

import gc
import logging
import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from stories import Start, park, resume, text

import layby
from greenlet import greenlet
from layby._greenlet import _MAX_IDLE
from layby._job import Job


def counts() -> tuple[int, int, int, int]:
    gc.collect()
    objects = gc.get_objects()
    return (
        sum(isinstance(each, greenlet) and not each.dead for each in objects),
        sum(isinstance(each, Job) for each in objects),
        threading.active_count(),
        len(os.listdir("/proc/self/fd")),
    )


def run(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
    start_response("200 OK", [])
    path = environ["PATH_INFO"]
    try:
        layby.sleep(1).result()
        if path == "/fails":
            raise ValueError("on purpose")
        yield b"first "
        if path == "/stream":
            layby.sleep(1).result()
        yield environ["wsgi.input"].read()
    finally:
        if path == "/leaves":
            layby.sleep(1).result()


def test_greenlets_are_reused_and_nothing_else_stays(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    # The records of failures, which pytest keeps, would keep their requests alive.
    caplog.set_level(logging.CRITICAL + 1, logger="layby")
    before = counts()
    [slot] = start(run)
    number = 0

    def one_of_each(times: int) -> None:
        nonlocal number
        for _ in range(times):
            for path in ("/", "/stream", "/fails", "/leaves", "/cancelled"):
                number += 1
                slot.request(number, path, file=b"body" if path == "/stream" else None)
                park(slot, number)
            for request, path in enumerate(("/", "/stream", "/fails", "/leaves"), number - 4):
                resume(slot, request)
                if path == "/stream" or path == "/leaves":
                    slot.expect("ANSWER")
                    park(slot, request, 1)
                    resume(slot, request, 2)
                    while slot.frame().type != "READY":
                        pass
                else:
                    slot.answer()
            slot.send("CANCEL", request=number, epoch=1)
            slot.expect("READY")

    one_of_each(1)
    after_one = counts()
    one_of_each(20)
    assert counts() == after_one
    # Five at a time, and so five greenlets, which wait for the next requests.
    assert after_one[0] == before[0] + 5 + 1  # the hub
    assert after_one[1] == before[1]


def test_a_burst_leaves_no_more_greenlets_than_are_kept(start: Start) -> None:
    before = counts()
    [slot] = start(run)
    burst = range(1, _MAX_IDLE + 50)
    for request in burst:
        slot.request(request, "/")
        park(slot, request)
    assert counts()[0] == before[0] + len(burst) + 1
    for request in burst:
        resume(slot, request)
        assert text(slot) == "first "
    greenlets, jobs, *_ = counts()
    assert greenlets == before[0] + _MAX_IDLE + 1
    assert jobs == before[1]


def test_a_slot_that_ends_leaves_no_greenlet(start: Start) -> None:
    before = counts()
    [slot] = start(run)
    for request in range(1, 6):
        slot.request(request, "/")
        park(slot, request)
    for request in (1, 2):
        resume(slot, request)
        text(slot)
    slot.socket.close()
    for _ in range(1000):
        if threading.active_count() == before[2]:
            break
        threading.Event().wait(0.01)
    greenlets, jobs, threads, descriptors = counts()
    assert (greenlets, jobs, threads, descriptors) == before
