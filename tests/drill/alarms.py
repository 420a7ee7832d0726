"""The faults that alerts are for: each with its alert, and the panel that shows it.

A fault is a context: it begins on entering, goes on in the background, and is undone on leaving.
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from support.certificates import certificate
from support.client import Connection, Gone
from support.gateway import Gateway
from support.postgres import Postgres
from support.prometheus import Prometheus
from support.services import Services
from support.shop import Shop


@dataclass
class Scene:
    """What a fault is injected into: a gateway of its own in front of the shop, and its watcher."""

    folder: Path
    postgres: Postgres
    shop: Shop
    stub: Services
    gateway: Gateway
    prometheus: Prometheus


Inject = Callable[[Scene], AbstractAsyncContextManager[None]]


@dataclass(frozen=True)
class Alarm:
    fault: str
    alert: str
    inject: Inject
    # Dashboard and panel, and the series in it: what its legend says, or the value of its label.
    panel: tuple[str, str, str]
    # Alerts that the same fault may bring with it, and rightly.
    follows: frozenset[str] = frozenset()
    # Beside what all gateways have here, by section.
    keys: str = ""
    slots: str = ""
    processes: int = 2


QUEUE = frozenset({"LaybyQueueBudgetBurnsFast", "LaybyQueueBudgetBurnsSlowly"})
LOST = frozenset({"LaybySlotsLost"})
ERRORS = frozenset({"LaybyServerErrors"})


@asynccontextmanager
async def behind(*works: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Goes on while the block does."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome


async def asking(scene: Scene, path: str, begin: float = 0.0) -> None:
    """A client that asks for the same over and over, whatever it is told."""
    await asyncio.sleep(begin)
    while True:
        try:
            connection = await Connection.open(scene.gateway.address)
            while not connection.closed:
                await connection.ask("GET", path)
        except (OSError, Gone):
            await asyncio.sleep(0.1)


def from_stub(scene: Scene, path: str) -> str:
    """A view of the lab that fetches something from the services."""
    return f"{path}?reference=alarm&url={quote(scene.stub.url + '/', safe='')}"


# The gateway itself ----------------------------------------------------------------------------


@asynccontextmanager
async def stopped(scene: Scene) -> AsyncIterator[None]:
    scene.gateway.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        scene.gateway.signal(signal.SIGCONT)


@asynccontextmanager
async def short_of_descriptors(scene: Scene) -> AsyncIterator[None]:
    """A limit as in a unit without LimitNOFILE, and clients that keep their connections."""
    pid, room = scene.gateway.pid, 30
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    limit = (scene.gateway.descriptors() + 10 * room, before[1])
    resource.prlimit(pid, resource.RLIMIT_NOFILE, limit)
    kept = []
    try:
        while scene.gateway.descriptors() < limit[0] - room:
            kept.append(await Connection.open(scene.gateway.address))
        yield
    finally:
        for each in kept:
            each.close()
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


@asynccontextmanager
async def not_renewed(scene: Scene) -> AsyncIterator[None]:
    await asyncio.to_thread(certificate, scene.folder, 3)
    yield


@asynccontextmanager
async def broken_file(scene: Scene) -> AsyncIterator[None]:
    file = scene.gateway.configuration
    before = file.read_text()
    file.write_text(before.replace("[slots]", "[slot]"))
    scene.gateway.signal(signal.SIGHUP)
    try:
        yield
    finally:
        file.write_text(before)


@asynccontextmanager
async def broken_view(scene: Scene) -> AsyncIterator[None]:
    """A new version of a view does not find what it needs."""

    async def ask() -> None:
        while True:
            connection = await Connection.open(scene.gateway.address)
            await connection.ask("GET", "/lab/fetch")
            connection.close()
            await asyncio.sleep(0.2)

    async with behind(ask()):
        yield


@asynccontextmanager
async def server_away(scene: Scene) -> AsyncIterator[None]:
    async with behind(*(asking(scene, "/elsewhere") for _ in range(3))):
        yield


# The database and the slots --------------------------------------------------------------------


@asynccontextmanager
async def locked(scene: Scene) -> AsyncIterator[None]:
    """Somebody changes a table that every page reads, and does not commit."""
    with scene.postgres.connect(scene.shop.database) as connection, connection.transaction():
        connection.execute("LOCK TABLE store_product IN ACCESS EXCLUSIVE MODE")
        yield


@asynccontextmanager
async def locked_now_and_then(scene: Scene) -> AsyncIterator[None]:
    """The same for a second or so, again and again, so that one of eleven requests waits."""

    def enough_wait() -> bool:
        # The slow alert's shorter window must not run dry between two locks, and the fast
        # alert's longer one must not fill up: their bounds are 0.06 and 0.144.
        bounds = {"layby:queue_missed:ratio30m": 0.09, "layby:queue_missed:ratio1h": 0.11}
        missed = {of: scene.prometheus.values(of) for of in bounds}
        return any(values and values[0] > bounds[of] for of, values in missed.items())

    async def lock() -> None:
        while True:
            if not await asyncio.to_thread(enough_wait):
                async with locked(scene):
                    await asyncio.sleep(1.4)
            # Until what it did is in the rules' records.
            await asyncio.sleep(2.5)

    async with behind(lock()):
        yield


def in_slots(path: str) -> Inject:
    """Two requests whose code does not come back."""

    @asynccontextmanager
    async def inject(scene: Scene) -> AsyncIterator[None]:
        async with behind(asking(scene, path), asking(scene, path)):
            yield

    return inject


@asynccontextmanager
async def in_place(scene: Scene) -> AsyncIterator[None]:
    """A new view asks for `.result()` where it could await."""
    scene.stub.set(latency=1000)
    path = from_stub(scene, "/lab/fetch-in-place")
    async with behind(*(asking(scene, path) for _ in range(5))):
        yield


@asynccontextmanager
async def killed(scene: Scene) -> AsyncIterator[None]:
    async def kill() -> None:
        while True:
            for pid in await asyncio.to_thread(scene.gateway.worker_pids):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            await asyncio.sleep(1.5)

    async with behind(kill()):
        yield


# Third parties ---------------------------------------------------------------------------------


@asynccontextmanager
async def resetting(scene: Scene) -> AsyncIterator[None]:
    for service in ("shipping", "fraud"):
        scene.stub.set(**{service: {"fault": "reset"}})
    yield


@asynccontextmanager
async def answering_errors(scene: Scene) -> AsyncIterator[None]:
    scene.stub.set(status=503)
    yield


@asynccontextmanager
async def slow(scene: Scene) -> AsyncIterator[None]:
    scene.stub.set(latency=12_000)
    path = from_stub(scene, "/lab/slow")
    # One after the other, so that fetches also end one after the other.
    async with behind(*(asking(scene, path, each / 4) for each in range(48))):
        yield


@asynccontextmanager
async def many_parked(scene: Scene) -> AsyncIterator[None]:
    scene.stub.set(latency=8_000)
    path = from_stub(scene, "/lab/slow")
    async with behind(*(asking(scene, path) for _ in range(40))):
        yield


# Bodies ----------------------------------------------------------------------------------------


@asynccontextmanager
async def unread(scene: Scene) -> AsyncIterator[None]:
    """Clients ask for large answers and read nothing, until little room is left."""
    request = b"GET /lab/drill/send?seed=1&size=6000000 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    clients: list[socket.socket] = []

    def used() -> float:
        metric = scene.gateway.metric
        return metric("layby_spool_bytes") / metric("layby_spool_limit_bytes")

    try:
        while (before := await asyncio.to_thread(used)) < 0.85:
            each = socket.socket()
            each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            each.connect(scene.gateway.address)
            each.send(request)
            clients.append(each)
            # One at a time, so that the last one does not overfill it.
            async with asyncio.timeout(10):
                while await asyncio.to_thread(used) < before + 0.04:
                    await asyncio.sleep(0.1)
            await asyncio.sleep(0.3)
        yield
    finally:
        for each in clients:
            each.close()


@asynccontextmanager
async def uploads(scene: Scene) -> AsyncIterator[None]:
    """Uploads that are larger than the room for them."""
    body = bytes(6 << 20)

    async def upload() -> None:
        while True:
            with suppress(OSError, Gone):
                connection = await Connection.open(scene.gateway.address)
                await connection.ask("POST", "/lab/drill/store?reference=alarm", (), body)
                connection.close()
            await asyncio.sleep(0.2)

    async with behind(upload()):
        yield


CERTIFICATE = (
    '[tls]\nlisten = "127.0.0.1:0"\ncert = "{folder}/cert.pem"\nkey = "{folder}/key.pem"\n'
)
# Every alert but LaybyGone, for which there must be no gateway to break.
ALARMS = [
    Alarm(
        "the gateway is stopped (SIGSTOP)",
        "LaybyDown",
        stopped,
        ("overview", "Gateways", "up"),
    ),
    Alarm(
        "a view raises an exception",
        "LaybyServerErrors",
        broken_view,
        ("overview", "Server errors", "5xx"),
    ),
    Alarm(
        "a table that every page reads is locked",
        "LaybyQueueBudgetBurnsFast",
        locked,
        ("overview", "Shed", "queue_timeout"),
        follows=frozenset({"LaybyQueueBudgetBurnsSlowly"}) | ERRORS,
        slots='queue_timeout = "2s"',
    ),
    Alarm(
        "the same, for a moment now and then",
        "LaybyQueueBudgetBurnsSlowly",
        locked_now_and_then,
        ("slots", "Wait for a slot", "p99"),
    ),
    Alarm(
        "requests whose code does not end",
        "LaybySlotsLost",
        in_slots("/lab/stuck?seconds=600"),
        ("overview", "Slots lost", "lost"),
        follows=QUEUE | ERRORS,
        slots='request_timeout = "3s"\noverdue_grace = "300s"',
    ),
    Alarm(
        "the same, beyond the grace",
        "LaybyWorkersOverdue",
        in_slots("/lab/stuck?seconds=600"),
        ("workers", "Worker processes started again", "overdue"),
        follows=LOST | QUEUE | ERRORS,
        slots='request_timeout = "3s"\noverdue_grace = "1s"',
    ),
    Alarm(
        "a view waits with `.result()` in coroutine mode",
        "LaybyWaitingInPlace",
        in_place,
        ("slots", "Slots held by requests that wait", "waiting in place"),
        # Fewer slots are left for the others.
        follows=QUEUE,
    ),
    Alarm(
        "two services reset their connections",
        "LaybyOriginFailing",
        resetting,
        ("services", "Fetches that fail", "127.0.0.1"),
        follows=ERRORS,
    ),
    Alarm(
        "every service answers 503 to everything",
        "LaybyOriginRefusing",
        answering_errors,
        ("services", "Responses that are errors", "127.0.0.1"),
        follows=ERRORS,
    ),
    Alarm(
        "every service takes 12 s",
        "LaybyOriginSlow",
        slow,
        ("services", "Time of a fetch, 95th percentile", "127.0.0.1"),
    ),
    Alarm(
        "more requests wait for services than may be parked",
        "LaybyParkedNearBound",
        many_parked,
        ("overview", "Shed", "parked_full"),
        follows=QUEUE | ERRORS,
        slots='parked = 30\nqueue_timeout = "1s"',
    ),
    Alarm(
        "the server of a route is away",
        "LaybyUpstreamSheds",
        server_away,
        ("slots", "Shed by upstreams of routes", "http://127.0.0.1:9"),
        follows=ERRORS,
        keys='[[route]]\npath = "/elsewhere"\nupstream = "http://127.0.0.1:9"',
        slots='queue_timeout = "1s"',
    ),
    Alarm(
        "workers are killed again and again",
        "LaybyWorkerCrashLoop",
        killed,
        ("workers", "Worker processes started again", "crash"),
        follows=LOST | QUEUE | ERRORS,
        processes=4,
    ),
    Alarm(
        "clients keep more connections than there is room for",
        "LaybyDescriptorsShort",
        short_of_descriptors,
        ("workers", "Descriptors", "instance"),
    ),
    Alarm(
        "clients do not read large answers",
        "LaybySpoolFilling",
        unread,
        ("workers", "Share of the spool in use", "instance"),
        keys='spool_limit = "48MiB"\nstall_timeout = "5m"',
    ),
    Alarm(
        "uploads are larger than the room for them",
        "LaybySpoolFull",
        uploads,
        ("workers", "Bodies that found no room", "spool_limit"),
        follows=ERRORS,
        keys='spool_limit = "4MiB"',
    ),
    Alarm(
        "a reload finds a mistake in the file",
        "LaybyReloadRefused",
        broken_file,
        ("workers", "Reloads refused", "refused"),
    ),
    Alarm(
        "a certificate with three days left is put in place",
        "LaybyCertificateEnds",
        not_renewed,
        ("workers", "Certificate", "instance"),
    ),
]
