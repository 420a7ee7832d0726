"""`layby.io` and `layby.parallel` in greenlet mode: they park, and go on on their own slot."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from typing import Any

import pytest
from fakegateway import LOCAL, PINNED, Connection
from stories import Start, app, hold, text

import layby
from layby import _job
from layby._drive import drive
from layby._job import Obstacle

USER = contextvars.ContextVar("user", default="nobody")


def leaves(slot: Connection, request: int, epoch: int = 0) -> None:
    """Expects that a request parks for something in its own process, pinned to its slot."""
    frame = slot.expect("PARK")
    assert (frame.request, frame.epoch, frame.flags) == (request, epoch, LOCAL | PINNED)


def run_call(slot: Connection, control: Connection, request: int) -> None:
    """Serves a CALL on this slot."""
    call = control.expect("CALL")
    assert call.request == request
    slot.send("RUN", request=request, epoch=call.epoch, aux=call.aux)
    slot.expect("READY")


def go_on(slot: Connection, control: Connection, request: int, epoch: int = 1) -> None:
    """Serves a WANT."""
    assert control.expect("WANT").request == request
    slot.send("RESUME", request=request, epoch=epoch)


def here() -> str:
    return threading.current_thread().name


def test_a_block_of_asyncio_far_below_synchronous_code(start: Start, control: Connection) -> None:
    async def block(path: str) -> str:
        before = here()
        async with layby.io:
            on = here()
            USER.set(path)
            await asyncio.sleep(0.001)
        assert here() == before
        return f"{on} {USER.get()}"

    def view(environ: dict[str, Any]) -> bytes:
        path = environ["PATH_INFO"]
        return b"".join(sorted(f"{path} {drive(block(path))}".encode() for path in [path]))

    one, two = start(app(view), slots=2)
    one.request(1, "/a")
    leaves(one, 1)
    two.request(2, "/b")
    leaves(two, 2)
    wanted = {control.expect("WANT").request for _ in range(2)}
    assert wanted == {1, 2}
    for slot, request, path in ((two, 2, "/b"), (one, 1, "/a")):
        slot.send("RESUME", request=request, epoch=1)
        assert text(slot) == f"{path} layby-loop {path}"


def test_operations_side_by_side_on_slots(start: Start, control: Connection) -> None:
    def operation(number: int) -> str:
        return f"{number} {USER.get()} {here()}"

    async def block() -> list[str]:
        async with layby.parallel() as ops:
            many = [ops.run(operation, number) for number in range(2)]
        return [each.result() for each in many]

    def view(environ: dict[str, Any]) -> bytes:
        USER.set(environ["PATH_INFO"])
        return f"{drive(block())} {here()}".encode()

    one, two = start(app(view), slots=2)
    one.request(1, "/a")
    leaves(one, 1)
    run_call(two, control, 1)
    run_call(one, control, 1)
    go_on(one, control, 1)
    assert text(one) == "['0 /a slot-1', '1 /a slot-0'] slot-0"


def test_one_slot_is_enough(start: Start, control: Connection) -> None:
    async def block() -> list[str]:
        async with layby.parallel() as ops:
            many = [ops.run(str, number) for number in range(3)]
        return [each.result() for each in many]

    [slot] = start(app(lambda environ: repr(drive(block())).encode()))
    slot.request(1)
    leaves(slot, 1)
    for _ in range(3):
        run_call(slot, control, 1)
    go_on(slot, control, 1)
    assert text(slot) == "['0', '1', '2']"


@pytest.fixture
def transaction() -> Any:
    _job.park_checks.append(lambda job: Obstacle("transaction", "always"))
    yield
    _job.park_checks.pop()


@pytest.mark.usefixtures("transaction")
def test_in_a_transaction_the_block_waits_in_place_and_parallel_is_refused(start: Start) -> None:
    async def ride() -> str:
        async with layby.io:
            await asyncio.sleep(0.001)
        return "rode"

    async def parallel() -> str:
        try:
            async with layby.parallel() as ops:
                ops.run(str, 1)
        except layby.ParkRefused:
            return "refused"
        return "?"

    [slot] = start(app(lambda environ: f"{drive(ride())} {drive(parallel())}".encode()))
    slot.request(1)
    assert hold(slot, 1)["reason"] == "transaction"
    assert text(slot) == "rode refused"


def test_a_client_that_leaves_cancels_the_task_and_then_the_request(
    start: Start, control: Connection
) -> None:
    seen: list[str] = []
    aboard = threading.Event()

    async def block() -> None:
        try:
            async with layby.io:
                try:
                    aboard.set()
                    await asyncio.sleep(60)
                except asyncio.CancelledError:
                    seen.append(f"cancelled on {here()}")
                    raise
        finally:
            seen.append(f"finally on {here()}")

    def view(environ: dict[str, Any]) -> bytes:
        try:
            drive(block())
        except layby.Cancelled:
            seen.append("the view is ended")
            raise
        return b"?"

    [slot] = start(app(view))
    slot.request(1)
    leaves(slot, 1)
    assert aboard.wait(10)
    slot.send("CANCEL", request=1, epoch=1)
    slot.expect("READY")
    assert seen == ["cancelled on layby-loop", "finally on slot-0", "the view is ended"]
    slot.request(2)
    leaves(slot, 2)
