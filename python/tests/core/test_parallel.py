"""`async with layby.parallel()`: operations side by side on slots, their request on none."""

from __future__ import annotations

import asyncio
import contextvars
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import Start
from fakegateway import LOCAL, Connection
from test_coroutine import app, thread_number
from test_io import leaves, resume, run_call, wanted

import layby
from layby import _hooks, _job
from layby._drive import drive
from layby._job import Obstacle, current_job

state = threading.local()


def serve(
    slots: list[Connection], control: Connection, request: int, ops: int, epoch: int = 0
) -> None:
    """Take the request through its block: park, an op per slot in turn, and on again."""
    leaves(slots[0], request, epoch)
    for number in range(ops):
        slot = slots[number % len(slots)]
        run_call(slot, control, request, epoch)
        ready = slot.expect("READY")
        assert (ready.request, ready.epoch) == (request, epoch)
    wanted(control, request, epoch)
    resume(slots[-1], request, epoch + 1)


def test_operations_run_on_slots_side_by_side_and_give_their_results_in_order(
    start: Start, control: Connection
) -> None:
    together = threading.Barrier(3, timeout=20)

    def double(number: int, *, plus: int = 0) -> str:
        together.wait()
        return f"{2 * number + plus} on {thread_number()}"

    async def view(environ: dict[str, Any]) -> bytes:
        async with layby.parallel() as ops:
            many = [ops.run(double, number, plus=1) for number in range(3)]
        return f"{[op.result() for op in many]} {thread_number()}".encode()

    slots = start(app(view), mode="coroutine", slots=3)
    slots[0].request(1)
    leaves(slots[0], 1)
    for slot in slots:
        run_call(slot, control, 1)
    for slot in slots:
        slot.expect("READY")
    wanted(control, 1)
    resume(slots[2], 1, 1)
    # Which slot takes which call is up to the gateway: here in the order of CALL.
    assert slots[2].answer()[1] == b"['1 on 0', '3 on 1', '5 on 2'] 2"


def test_one_slot_is_enough(start: Start, control: Connection) -> None:
    async def view(environ: dict[str, Any]) -> bytes:
        async with layby.parallel() as ops:
            many = [ops.run(thread_number) for _ in range(5)]
        return str([op.result() for op in many]).encode()

    slots = start(app(view), mode="coroutine")
    slots[0].request(1)
    serve(slots, control, 1, 5)
    assert slots[0].answer()[1] == b"[0, 0, 0, 0, 0]"


def test_a_block_without_operations_does_not_park(start: Start) -> None:
    async def view(environ: dict[str, Any]) -> bytes:
        async with layby.parallel():
            pass
        return b"done"

    [slot] = start(app(view), mode="coroutine")
    slot.request(1)
    assert slot.answer()[1] == b"done"


def _fail(message: str) -> None:
    raise ValueError(message)


def _catching(*failing: str, in_block: str = "") -> Any:
    async def view(environ: dict[str, Any]) -> bytes:
        good: Any = None
        try:
            async with layby.parallel() as ops:
                good = ops.run(int, "7")
                for message in failing:
                    ops.run(_fail, message)
                if in_block:
                    raise KeyError(in_block)
        except BaseException as error:
            many = getattr(error, "exceptions", ())
            return f"{type(error).__name__} {error} {list(many)} {good.result()}".encode()
        return b"no error"

    return view


@pytest.mark.parametrize(
    ("view", "ops", "seen"),
    [
        (_catching("one"), 2, "ValueError one [] 7"),
        (
            _catching("one", "two"),
            3,
            "ExceptionGroup several operations failed (2 sub-exceptions)"
            " [ValueError('one'), ValueError('two')] 7",
        ),
        (_catching("one", in_block="mine"), 2, "KeyError 'mine' [] 7"),
    ],
)
def test_exceptions_are_raised_at_the_end_when_all_have_ended(
    start: Start, control: Connection, view: Any, ops: int, seen: str
) -> None:
    slots = start(app(view), mode="coroutine", slots=2)
    slots[0].request(1)
    serve(slots, control, 1, ops)
    assert slots[1].answer()[1].decode() == seen


def test_operations_have_a_copy_of_the_context_and_the_named_thread_locals(
    start: Start, control: Connection
) -> None:
    user = contextvars.ContextVar("user", default="nobody")

    def operation() -> str:
        seen = f"{user.get()} {getattr(state, 'tenant', None)}"
        user.set("changed")
        state.tenant = "changed"
        return seen

    async def view(environ: dict[str, Any]) -> bytes:
        user.set(environ["PATH_INFO"])
        state.tenant = "blue"
        async with layby.parallel() as ops:
            many = [ops.run(operation) for _ in range(2)]
        seen = [op.result() for op in many]
        return f"{seen} {user.get()} {state.tenant}".encode()

    sys.modules["test_parallel_of_layby"] = sys.modules[__name__]
    try:
        slots = start(
            app(view), mode="coroutine", slots=2, thread_locals=("test_parallel_of_layby.state",)
        )
    finally:
        del sys.modules["test_parallel_of_layby"]
    slots[0].request(1, "/ann")
    serve(slots, control, 1, 2)
    assert slots[1].answer()[1] == b"['/ann blue', '/ann blue'] /ann blue"
    # And nothing of it is left on the slots.
    slots[0].request(2, "/bob")
    serve(slots, control, 2, 2)
    assert slots[1].answer()[1] == b"['/bob blue', '/bob blue'] /bob blue"


def test_operations_wait_in_place_for_layby_s_things(start: Start, control: Connection) -> None:
    async def stepped() -> float:
        return await layby.sleep(0.25)

    async def view(environ: dict[str, Any]) -> bytes:
        async with layby.parallel() as ops:
            a = ops.run(layby.sleep(0.5).result)
            b = ops.run(stepped)
        return f"{a.result()} {b.result()}".encode()

    one, two = start(app(view), mode="coroutine", slots=2)
    one.request(9)
    leaves(one, 9)
    for slot, seconds in ((one, 0.5), (two, 0.25)):
        run_call(slot, control, 9)
        hold = slot.expect("HOLD")
        assert (hold.request, hold.epoch, hold.plan["gather"]) == (9, 0, [{"sleep": seconds}])
    for slot, seconds in ((one, 0.5), (two, 0.25)):
        slot.results("RESULTS", 9, 0, {"slept": seconds})
        slot.expect("READY")
    wanted(control, 9)
    resume(one, 9, 1)
    assert one.answer()[1] == b"0.5 0.25"


def test_an_operation_may_ride_while_its_slot_waits(start: Start, control: Connection) -> None:
    async def rides() -> str:
        async with layby.io:
            await asyncio.sleep(0)
            inside = threading.current_thread().name
        return f"{inside} {thread_number()}"

    async def view(environ: dict[str, Any]) -> bytes:
        async with layby.parallel() as ops:
            op = ops.run(rides)
        return op.result().encode()

    one, two = start(app(view), mode="coroutine", slots=2)
    one.request(1)
    leaves(one, 1)
    run_call(two, control, 1)
    hold = two.expect("HOLD")
    assert (hold.request, hold.epoch, hold.flags) == (1, 0, LOCAL)
    two.expect("READY")
    wanted(control, 1)
    resume(one, 1, 1)
    assert one.answer()[1] == b"layby-loop 1"


def test_operations_of_an_operation_run_one_after_the_other(
    start: Start, control: Connection
) -> None:
    async def inner() -> str:
        async with layby.parallel() as ops:
            many = [ops.run(thread_number) for _ in range(2)]
        return str([op.result() for op in many])

    async def view(environ: dict[str, Any]) -> bytes:
        async with layby.parallel() as ops:
            op = ops.run(inner)
        return op.result().encode()

    one, two = start(app(view), mode="coroutine", slots=2)
    one.request(1)
    leaves(one, 1)
    run_call(two, control, 1)
    assert two.expect("HOLD").flags == LOCAL
    two.expect("READY")
    wanted(control, 1)
    resume(one, 1, 1)
    assert one.answer()[1] == b"[1, 1]"


def test_a_cancel_drops_what_has_not_begun_and_waits_for_the_rest(
    start: Start, control: Connection
) -> None:
    begun, release = threading.Event(), threading.Event()
    events: list[str] = []

    def operation(number: int) -> None:
        begun.set()
        release.wait(20)
        events.append(f"operation {number}")

    async def view(environ: dict[str, Any]) -> bytes:
        try:
            async with layby.parallel() as ops:
                for number in range(3):
                    ops.run(operation, number)
        finally:
            events.append("request ended")
        return b"unreachable"

    one, two = start(app(view), mode="coroutine", slots=2)
    one.request(1)
    leaves(one, 1)
    calls = [control.expect("CALL") for _ in range(3)]
    two.send("RUN", request=1, epoch=0, aux=calls[0].aux)
    assert begun.wait(20)
    one.send("CANCEL", request=1, epoch=1)
    assert one.quiet()
    release.set()
    two.expect("READY")
    one.expect("READY")
    assert events == ["operation 0", "request ended"]
    # A RUN that crossed the CANCEL runs nothing.
    two.send("RUN", request=1, epoch=0, aux=calls[1].aux)
    two.expect("READY")
    assert len(events) == 2
    assert control.quiet()


def test_operations_can_only_be_added_in_the_block(start: Start, control: Connection) -> None:
    async def view(environ: dict[str, Any]) -> bytes:
        block = layby.parallel()
        messages = []
        with pytest.raises(layby.Error) as caught:
            block.run(thread_number)
        messages.append(str(caught.value))
        async with block as ops:
            op = ops.run(thread_number)
            with pytest.raises(layby.Error, match="operations run when"):
                op.result()
        with pytest.raises(layby.Error) as caught:
            block.run(thread_number)
        messages.append(str(caught.value))
        return "|".join(messages).encode()

    slots = start(app(view), mode="coroutine")
    slots[0].request(1)
    serve(slots, control, 1, 1)
    message = "operations can only be added inside `async with layby.parallel()`"
    assert slots[0].answer()[1].decode() == f"{message}|{message}"


@pytest.fixture
def obstacle(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Obstacle]]:
    obstacles: list[Obstacle] = []

    def check(job: _job.Job) -> Obstacle | None:
        return obstacles[0] if obstacles else None

    _job.park_checks.append(check)
    yield obstacles
    _job.park_checks.remove(check)


@pytest.mark.parametrize("mode", ["coroutine", "wsgi"])
def test_in_a_transaction_it_is_refused(start: Start, obstacle: list[Obstacle], mode: str) -> None:
    ran: list[int] = []

    async def view(environ: dict[str, Any]) -> bytes:
        try:
            async with layby.parallel() as ops:
                obstacle.append(Obstacle("transaction", "atomic() on 'default'"))
                ops.run(ran.append, 1)
        except layby.ParkRefused as error:
            return f"{error} {ran}".encode()
        return b"no error"

    async def inside(environ: dict[str, Any]) -> bytes:
        with pytest.raises(layby.ParkRefused):
            async with layby.parallel():
                ran.append(2)
        return await view(environ)

    def wsgi(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        body = drive(inside(environ) if obstacle else view(environ))
        start_response("200 OK", [])
        return [body]

    async def either(environ: dict[str, Any]) -> bytes:
        return await (inside(environ) if obstacle else view(environ))

    [slot] = start(app(either) if mode == "coroutine" else wsgi, mode=mode)
    for request in (1, 2):
        slot.request(request)
        body = slot.answer()[1].decode()
        assert body.startswith("layby.parallel() cannot be used here (atomic() on 'default')")
        assert body.endswith("[]")


def test_what_must_not_park_runs_them_one_after_the_other(
    start: Start, obstacle: list[Obstacle]
) -> None:
    async def view(environ: dict[str, Any]) -> bytes:
        job = current_job()
        async with layby.parallel() as ops:
            many = [ops.run(thread_number) for _ in range(2)]
            job_of = ops.run(current_job)
        inner = job_of.result()
        assert job is not None
        assert inner is not None
        assert inner is not job
        assert (inner.request, inner.epoch) == (job.request, job.epoch)
        assert current_job() is job
        return str([op.result() for op in many]).encode()

    [slot] = start(app(view), mode="coroutine")
    obstacle.append(Obstacle("cursor", "a half-read iterator"))
    slot.request(1)
    hold = slot.expect("HOLD")
    assert (hold.flags, hold.plan["hold"]["reason"]) == (LOCAL, "cursor")
    assert slot.answer()[1] == b"[0, 0]"


@pytest.mark.parametrize(
    ("view", "seen"),
    [
        (_catching("one"), "ValueError one [] 7"),
        (_catching("one", in_block="mine"), "KeyError 'mine' [] 7"),
        (_catching(), "no error"),
    ],
)
def test_outside_layby_it_is_the_same_on_one_thread(view: Any, seen: str) -> None:
    assert drive(view({})).decode() == seen


def test_what_an_operation_leaves_open_is_its_error(start: Start, control: Connection) -> None:
    left: list[str] = []

    def close(job: _job.Job) -> None:
        if left:
            raise layby.Error(f"left {left.pop()} open")

    async def view(environ: dict[str, Any]) -> bytes:
        async with layby.parallel() as ops:
            fine = ops.run(thread_number)
        try:
            async with layby.parallel() as ops:
                ops.run(left.append, "a transaction")
        except layby.Error as error:
            return f"{fine.result()} {error}".encode()
        return b"no error"

    _job.after_call.append(close)
    try:
        slots = start(app(view), mode="coroutine")
        slots[0].request(1)
        serve(slots, control, 1, 1)
        serve(slots, control, 1, 1, epoch=1)
        assert slots[0].answer()[1] == b"0 left a transaction open"
    finally:
        _job.after_call.remove(close)


def test_hooks_bring_state_to_the_slots_of_operations_and_take_it_away(
    start: Start, control: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant = threading.local()
    for name in ("_on_park", "_on_resume"):
        monkeypatch.setattr(_hooks, name, [])

    @layby.on_park
    def put_away(environ: dict[str, Any]) -> None:
        del tenant.name

    @layby.on_resume
    def bring_back(environ: dict[str, Any]) -> None:
        if environ["PATH_INFO"] == "/broken" and current_job().slot == 1:  # type: ignore[union-attr]
            raise OSError("no such tenant")
        tenant.name = environ["PATH_INFO"]

    async def view(environ: dict[str, Any]) -> bytes:
        tenant.name = environ["PATH_INFO"]
        try:
            async with layby.parallel() as ops:
                many = [ops.run(getattr, tenant, "name") for _ in range(2)]
        finally:
            mine = tenant.name
            del tenant.name
        return f"{[op.result() for op in many]} {mine}".encode()

    slots = start(app(view), mode="coroutine", slots=2)
    slots[0].request(1, "/blue")
    leaves(slots[0], 1)
    for slot in slots:
        run_call(slot, control, 1)
        slot.expect("READY")
    wanted(control, 1)
    resume(slots[0], 1, 1)
    assert slots[0].answer()[1] == b"['/blue', '/blue'] /blue"
    # One whose state could not be brought back is not run, and so its request ends.
    slots[0].request(2, "/broken")
    leaves(slots[0], 2)
    for slot in slots:
        run_call(slot, control, 2)
        slot.expect("READY")
    wanted(control, 2)
    resume(slots[0], 2, 1)
    assert slots[0].answer()[0].aux == 500


def test_a_failure_in_setting_up_or_clearing_the_slot_is_the_operation_s(
    start: Start, control: Connection
) -> None:
    def fail(job: _job.Job) -> None:
        if job.inline:
            raise OSError("the connection cannot be closed")

    async def view(environ: dict[str, Any]) -> bytes:
        try:
            async with layby.parallel() as ops:
                ops.run(thread_number)
        except OSError as error:
            return str(error).encode()
        return b"no error"

    _job.on_leave.append(fail)
    try:
        slots = start(app(view), mode="coroutine")
        slots[0].request(1)
        serve(slots, control, 1, 1)
        assert slots[0].answer()[1] == b"the connection cannot be closed"
    finally:
        _job.on_leave.remove(fail)


def test_inside_io_operations_go_to_slots_as_well(start: Start, control: Connection) -> None:
    async def view(environ: dict[str, Any]) -> bytes:
        async with layby.io, layby.parallel() as ops:
            many = [ops.run(thread_number) for _ in range(2)]
        return str([op.result() for op in many]).encode()

    slots = start(app(view), mode="coroutine", slots=2)
    slots[0].request(1)
    serve(slots, control, 1, 2)
    assert slots[1].answer()[1] == b"[0, 1]"


def test_under_an_event_loop_operations_leave_it_alone() -> None:
    async def main() -> list[str]:
        async with layby.parallel() as ops:
            op = ops.run(lambda: threading.current_thread().name)
        return [threading.current_thread().name, op.result()]

    here, ran = asyncio.run(main())
    assert here != ran


def test_operations_after_one_that_the_client_has_left_are_not_run(start: Start) -> None:
    ran: list[str] = []

    def waits() -> None:
        try:
            layby.get("http://a/").result()
        finally:
            ran.append("first")

    async def both() -> None:
        async with layby.parallel() as ops:
            ops.run(waits)
            ops.run(ran.append, "second")

    def view(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        try:
            drive(both())
        finally:
            ran.append("end")
        raise AssertionError("unreachable")

    [slot] = start(view)
    slot.request(1)
    slot.expect("HOLD")  # the block
    slot.expect("HOLD")
    slot.send("CANCEL", request=1, epoch=0)
    slot.expect("READY")
    assert ran == ["first", "end"]
