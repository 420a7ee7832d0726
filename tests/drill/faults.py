"""The faults. Each is injected while a crowd asks, and says what it excuses.

A fault returns when it is over; what it did must then be undone or mend itself.
"""

from __future__ import annotations

import asyncio
import os
import random
import resource
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from crowd import Crowd, Pages
from support.client import Connection
from verdict import Excuses
from world import OVERDUE_GRACE, REQUEST_TIMEOUT, World, eventually_dead

Inject = Callable[[World, Crowd, random.Random], Awaitable[None]]


@dataclass(frozen=True)
class Fault:
    name: str
    inject: Inject
    excuses: Excuses
    # Of the crowd's clients, how many leave before they are answered.
    leavers: float = 0.0
    # Takes a minute, so that a long drill has it less often.
    slow: bool = False


def failed(what: str) -> None:
    raise AssertionError(what)


async def workers(world: World) -> list[int]:
    return await asyncio.to_thread(world.gateway.worker_pids)


async def a_worker(world: World, dice: random.Random) -> int:
    while not (pids := await workers(world)):
        await asyncio.sleep(0.05)
    return dice.choice(pids)


# Workers -------------------------------------------------------------------------------------


async def kill(world: World, crowd: Crowd, dice: random.Random) -> None:
    for _ in range(3):
        pid = await a_worker(world, dice)
        world.killed.add(pid)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        await crowd.served(20)


async def stop(world: World, crowd: Crowd, dice: random.Random) -> None:
    """A process that does nothing any more, and is not dead either."""
    pid = await a_worker(world, dice)
    world.killed.add(pid)
    os.kill(pid, signal.SIGSTOP)
    await eventually_dead(pid, 4 * REQUEST_TIMEOUT)
    await crowd.served(20)


async def stuck(world: World, crowd: Crowd, dice: random.Random, path: str, what: str) -> None:
    reference = f"{crowd.prefix}stuck"
    connection = await Connection.open(world.gateway.address)
    answer = await connection.ask("GET", f"/lab/drill/{path}&reference=stuck-{reference}")
    if answer.status != 504:
        failed(f"a request {what} was answered {answer.status}")
    if abs(answer.seconds - REQUEST_TIMEOUT) > 1.5:
        failed(f"its 504 came after {answer.seconds:.1f} s")
    connection.close()
    traces = await asyncio.to_thread(world.shop.ledger, f"stuck-{reference}")
    (pid,) = {pid for it in traces.values() for pid in it.pids}
    world.killed.add(pid)
    await eventually_dead(pid, OVERDUE_GRACE + 3 * REQUEST_TIMEOUT)
    await crowd.served(20)


async def stuck_in_python(world: World, crowd: Crowd, dice: random.Random) -> None:
    await stuck(world, crowd, dice, "sleep?seconds=600", "that sleeps")


async def stuck_in_c(world: World, crowd: Crowd, dice: random.Random) -> None:
    await stuck(world, crowd, dice, "spin?steps=60", "that holds the interpreter's lock")


async def leak(world: World, crowd: Crowd, dice: random.Random) -> None:
    """Workers that grow are replaced, and nobody notices."""
    before = world.gateway.metric("layby_worker_restarts_total", reason="recycled")
    connection = await Connection.open(world.gateway.address)
    for _ in range(600):
        answer = await connection.ask("GET", "/lab/drill/leak?bytes=4000000")
        if answer.status != 200:
            failed(f"a request that leaks was answered {answer.status}")
        now = await asyncio.to_thread(
            world.gateway.metric, "layby_worker_restarts_total", reason="recycled"
        )
        if now > before:
            break
        await asyncio.sleep(0.05)
    else:
        failed("no worker was replaced that leaks")
    connection.close()
    await crowd.served(20)


# Third parties -------------------------------------------------------------------------------


def origins(fault: str) -> Inject:
    async def inject(world: World, crowd: Crowd, dice: random.Random) -> None:
        # Not the payment's: whether a charge went through would be anybody's guess.
        for service in ("shipping", "fraud"):
            world.stub.set(**{service: {"fault": fault}})
            await crowd.served(40)
        world.stub.set(payment={"fault": fault}, latency=300)
        await asyncio.sleep(2)
        world.stub.set(latency=300)

    return inject


# Clients -------------------------------------------------------------------------------------


async def leavers(world: World, crowd: Crowd, dice: random.Random) -> None:
    flood = Crowd(
        f"{crowd.prefix}flood-", crowd.address, crowd.origin, dice, clients=150, leavers=0.9
    )
    flood.start()
    await crowd.served(60)
    await flood.finish()
    crowd.attempts += flood.attempts


@asynccontextmanager
async def undisturbed(world: World) -> AsyncIterator[None]:
    """Others must not feel what is done meanwhile."""
    pages = Pages(world.gateway.address)
    running = asyncio.create_task(pages.run())
    try:
        yield
    finally:
        pages.over = True
        await running
    if pages.failed:
        failed(f"a client beside it saw {pages.failed[:5]}")


@contextmanager
def slow_sockets(world: World, count: int) -> Iterator[list[socket.socket]]:
    sockets = []
    try:
        for _ in range(count):
            each = socket.socket()
            # A small window, so that what is not read is soon felt.
            each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            each.connect(world.gateway.address)
            each.setblocking(False)
            sockets.append(each)
        yield sockets
    finally:
        for each in sockets:
            each.close()


async def ended(each: socket.socket, seconds: float) -> bool:
    """Whether the gateway ends the connection in time."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(seconds):
            while await loop.sock_recv(each, 65536):
                pass
    except TimeoutError:
        return False
    except ConnectionError:
        pass
    return True


async def dribble(sockets: list[socket.socket], piece: bytes, seconds: float) -> None:
    """A byte or so, again and again, until nobody listens any more."""
    for _ in range(int(seconds / 0.5)):
        for each in sockets:
            with suppress(OSError):
                each.send(piece)
        await asyncio.sleep(0.5)


def slow(opening: bytes, piece: bytes, seconds: float) -> Inject:
    """Clients that open so, and go on byte by byte. They are cut off in time."""

    async def inject(world: World, crowd: Crowd, dice: random.Random) -> None:
        async with undisturbed(world):
            with slow_sockets(world, 150) as sockets:
                for each in sockets:
                    each.send(opening)
                await dribble(sockets, piece, seconds)
                over = await asyncio.gather(*(ended(each, 2) for each in sockets))
        if not all(over):
            failed(f"{over.count(False)} of {len(over)} slow clients were not cut off")

    return inject


async def slow_readers(world: World, crowd: Crowd, dice: random.Random) -> None:
    """Clients that ask for much and read nothing."""
    request = b"GET /lab/drill/send?seed=1&size=600000 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    async with undisturbed(world):
        with slow_sockets(world, 40) as sockets:
            for each in sockets:
                each.send(request)
            connections = len(sockets)
            await crowd.served(60)
            await asyncio.sleep(8)
            # They have been cut off: what is left to read ends, and is not all.
            over = await asyncio.gather(*(ended(each, 5) for each in sockets))
    if not all(over):
        failed(f"{over.count(False)} of {connections} that do not read were not cut off")


# Descriptors, disk ---------------------------------------------------------------------------


async def descriptors(world: World, crowd: Crowd, dice: random.Random) -> None:
    """The gateway may open no more, whatever for."""
    pid = world.gateway.pid
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    opened = []
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (world.gateway.descriptors() + 40, before[1]))
    try:
        for _ in range(200):
            each = socket.socket()
            each.setblocking(False)
            with suppress(BlockingIOError):
                each.connect(world.gateway.address)
            opened.append(each)
        used = cpu(pid)
        await asyncio.sleep(3)
        spent = cpu(pid) - used
        code, _ = await asyncio.wait_for(asyncio.to_thread(world.gateway.admin, "/livez"), 5)
        if code != 200:
            failed(f"/livez says {code} while there are no descriptors")
        if spent > 2.5:
            failed(f"the gateway spins: {spent:.1f} s of CPU in 3 s")
    finally:
        for each in opened:
            each.close()
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
    await crowd.served(40)


def cpu(pid: int) -> float:
    """Seconds of CPU that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def disk(world: World, crowd: Crowd, dice: random.Random) -> None:
    """The spool folder takes nothing more."""
    filler = world.spool / "filler"
    try:
        with filler.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(1 << 20))
        await asyncio.sleep(4)
    finally:
        filler.unlink()
    await crowd.served(40)


# Signals -------------------------------------------------------------------------------------


async def hangup(world: World, crowd: Crowd, dice: random.Random) -> None:
    """The workers are replaced, one process at a time."""
    old = set(await workers(world))
    world.gateway.signal(signal.SIGHUP)
    async with asyncio.timeout(60):
        while old & set(await workers(world)):
            await asyncio.sleep(0.1)
    await crowd.served(20)


async def terminate(world: World, crowd: Crowd, dice: random.Random) -> None:
    """The gateway drains, and another one takes its place."""
    gateway = world.gateway
    gateway.signal(signal.SIGTERM)
    code = await asyncio.to_thread(gateway.wait, 70)
    if code != 0:
        failed(f"exit status {code} after SIGTERM")
    gateway.end()
    await asyncio.to_thread(world.start_gateway, port=gateway.port)
    await crowd.served(20)


async def upgrade(world: World, crowd: Crowd, dice: random.Random) -> None:
    """The same program again, as if it were newer, in the same process and on the same socket."""
    old = set(await workers(world))
    world.gateway.signal(signal.SIGUSR2)
    async with asyncio.timeout(90):
        # Nobody answers on the admin listener in between.
        while True:
            with suppress(OSError):
                if (pids := set(await workers(world))) and not pids & old:
                    break
            await asyncio.sleep(0.1)
    await crowd.served(20)


OVERLOAD = frozenset({503})
FAULTS = [
    Fault("SIGKILL of workers", kill, Excuses(frozenset({502}), cuts=True)),
    Fault("SIGSTOP of a worker", stop, Excuses(frozenset({502, 504}), cuts=True), slow=True),
    Fault("stuck in Python", stuck_in_python, Excuses(frozenset({502, 504}), cuts=True), slow=True),
    Fault("stuck in C", stuck_in_c, Excuses(frozenset({502, 504}), cuts=True), slow=True),
    Fault("leak of memory", leak, Excuses()),
    *(
        Fault(f"origins: {fault}", origins(fault), Excuses(services=True))
        for fault in ("reset", "cut", "drip", "stall", "garbage")
    ),
    Fault("clients leave", leavers, Excuses(), leavers=0.3),
    Fault("slow heads", slow(b"GET / HTTP/1.1\r\n", b"X: y\r\n", 6), Excuses()),
    Fault(
        "slow bodies",
        slow(
            b"POST /lab/drill/store?reference=slow HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            b"Content-Length: 9999\r\n\r\n",
            b"x",
            12,
        ),
        Excuses(),
    ),
    Fault("slow readers", slow_readers, Excuses(), slow=True),
    Fault("no descriptors", descriptors, Excuses(frozenset({503}), cuts=True, services=True)),
    Fault("full spool disk", disk, Excuses(frozenset({503, 507}), cuts=True)),
    Fault("SIGHUP", hangup, Excuses()),
    Fault("SIGTERM", terminate, Excuses(OVERLOAD, closes=True)),
    Fault("SIGUSR2", upgrade, Excuses(OVERLOAD, closes=True)),
]
