"""gunicorn with layby's worker class: its life cycle, and clients who must not notice."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from conftest import TO_THE_STUB
from support.checkout import Buying, assert_each_ran_once, assert_right, check_out
from support.client import Connection
from support.gateway import Gateway
from support.gunicorns import NEWEST, OLDEST, Gunicorn
from support.postgres import Postgres, watching
from support.services import Services
from support.shop import Shop
from support.story import eventually, story

GATEWAY = f"""
drain_timeout = "60s"

[slots]
count = 8
queue_timeout = "30s"

{TO_THE_STUB}"""

# Two processes for the eight slots. No socket: the gateway has one.
TWO = """
bind = []
workers = 2
threads = 4
"""


@pytest.fixture(params=[OLDEST, NEWEST])
def release(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Pair:
    """A gateway and the gunicorn whose workers serve it, sharing a link."""

    def __init__(self, shop: Shop, folder: Path, running: ExitStack) -> None:
        self.shop = shop
        self.folder = folder
        self.link = folder / "link.sock"
        self.running = running

    def gateway(self, configuration: str = GATEWAY) -> Gateway:
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        gateway = Gateway(
            link=self.link,
            folder=folder,
            environment=self.shop.environment,
            configuration=configuration,
        )
        self.running.callback(gateway.end)
        return gateway

    def gunicorn(
        self,
        release: str = NEWEST,
        configuration: str = TWO,
        *,
        app: str = "shop.wsgi:application",
        **more: Any,
    ) -> Gunicorn:
        own = {"LAYBY_LINK": f"unix:{self.link}", **more.pop("environment", {})}
        gunicorn = Gunicorn(
            app,
            release=release,
            folder=Path(tempfile.mkdtemp(dir=self.folder)),
            environment={**self.shop.environment, **own},
            configuration=configuration,
            **more,
        )
        self.running.callback(gunicorn.end)
        return gunicorn


@pytest.fixture
def pair(shop: Shop, root: Path) -> Iterator[Pair]:
    # Not tmp_path, which is too long for a socket.
    folder = Path(tempfile.mkdtemp(prefix="gunicorn-", dir=root))
    with ExitStack() as running:
        yield Pair(shop, folder, running)


@story(90)
@pytest.mark.parametrize("preload", [False, True], ids=["", "preload"])
async def test_a_hangup_under_load_replaces_the_workers_and_loses_nothing(
    pair: Pair, stub: Services, postgres: Postgres, release: str, preload: bool
) -> None:
    stub.set(latency=700)
    gateway = pair.gateway()
    gunicorn = pair.gunicorn(release, f"{TWO}preload_app = {preload}")
    gateway.wait_ready()
    gateway.settles()
    assert [process["mode"] for process in gateway.status()["processes"]] == ["coroutine"] * 2
    # Gunicorn has no socket of its own.
    assert re.search(r"Listening at:  \(\d+\)", gunicorn.log)
    # From here on PostgreSQL itself refuses a ninth.
    pair.shop.allow_connections(8)

    with watching(postgres) as watch:
        buying = Buying(gateway, "hup-", 24)
        await eventually("nobody parks", lambda: gateway.parked() > 8, 15)
        old = gunicorn.booted()
        gunicorn.signal(signal.SIGHUP)
        await eventually("the old ones stay", lambda: set(old) <= set(gunicorn.exited()), 40)
        await buying.more(60)
        await buying.end()

    # While old and new processes were up, the slots were eight, and so were the connections.
    assert watch.most <= 8, watch.at_the_most
    assert_each_ran_once(pair.shop, stub, "hup-", buying.references)
    assert len(gunicorn.booted()) == 4
    gateway.settles()
    assert not {process["pid"] for process in gateway.status()["processes"]} & set(old)
    assert gateway.metric("layby_requests_shed_total") == 0


@story(90)
async def test_recycling_by_max_requests_loses_nothing(
    pair: Pair, stub: Services, postgres: Postgres, release: str
) -> None:
    stub.set(latency=300)
    gateway = pair.gateway()
    gunicorn = pair.gunicorn(release, f"{TWO}max_requests = 60\nmax_requests_jitter = 40")
    gateway.wait_ready()
    gateway.settles()
    pair.shop.allow_connections(8)

    with watching(postgres) as watch:
        buying = Buying(gateway, "recycled-", 16)
        await eventually("too few are recycled", lambda: len(gunicorn.exited()) >= 4, 60)
        await buying.end()

    assert watch.most <= 8, watch.at_the_most
    assert_each_ran_once(pair.shop, stub, "recycled-", buying.references)
    assert gunicorn.lines_with("max_requests")
    gateway.settles()
    # No failures among those that ended.
    assert not gunicorn.lines_with("exited with code")
    assert gateway.metric("layby_requests_shed_total") == 0


@story(60)
async def test_a_termination_answers_what_is_parked(
    pair: Pair, stub: Services, release: str
) -> None:
    stub.set(latency=3000)
    gateway = pair.gateway()
    gunicorn = pair.gunicorn(release)
    gateway.wait_ready()
    gateway.settles()
    connections = [await Connection.open(gateway.address) for _ in range(30)]
    references = [f"term-{number}" for number in range(len(connections))]
    buying = [
        asyncio.create_task(check_out(connection, reference))
        for connection, reference in zip(connections, references, strict=True)
    ]
    await eventually("not all park", lambda: gateway.parked() == len(references), 15)
    gunicorn.signal(signal.SIGTERM)
    for reference, answer in zip(references, await asyncio.gather(*buying), strict=True):
        assert_right(answer, reference)
    assert await asyncio.to_thread(gunicorn.wait) == 0
    assert_each_ran_once(pair.shop, stub, "term-", set(references))
    assert not gunicorn.lines_with("SIGKILL")
    assert not gunicorn.lines_with("exited with code")

    # The gateway is there for the next one.
    assert gateway.admin("/readyz")[0] == 503
    pair.gunicorn(release)
    connection = await Connection.open(gateway.address)
    assert (await connection.ask("GET", "/healthz")).status == 200


@story(60)
async def test_what_parks_longer_than_graceful_timeout_is_cut(
    pair: Pair, stub: Services, release: str
) -> None:
    stub.set(latency=30_000)
    gateway = pair.gateway()
    gunicorn = pair.gunicorn(release, f"{TWO}graceful_timeout = 4")
    gateway.wait_ready()
    connection = await Connection.open(gateway.address)
    buying = asyncio.create_task(check_out(connection, "hopeless"))
    await eventually("it is not parked", lambda: gateway.parked() == 1, 15)
    began = time.monotonic()
    gunicorn.signal(signal.SIGTERM)
    assert (await buying).status == 502
    assert await asyncio.to_thread(gunicorn.wait) == 0
    assert 2 < time.monotonic() - began < 8
    assert gunicorn.lines_with("graceful_timeout: what is still parked or running here is cut")
    # Nobody had to be killed.
    assert not gunicorn.lines_with("SIGKILL")
    # The gateway's drain would wait for the charge, which is under way.
    stub.end()


@story(60)
async def test_quitting_ends_it_at_once(pair: Pair, stub: Services, release: str) -> None:
    stub.set(latency=30_000)
    gateway = pair.gateway()
    gunicorn = pair.gunicorn(release)
    gateway.wait_ready()
    connection = await Connection.open(gateway.address)
    buying = asyncio.create_task(check_out(connection, "hopeless"))
    await eventually("it is not parked", lambda: gateway.parked() == 1, 15)
    gunicorn.signal(signal.SIGQUIT)
    assert (await buying).status == 502
    assert await asyncio.to_thread(gunicorn.wait, 5) == 0
    # The gateway's drain would wait for the charge, which is under way.
    stub.end()


@story(60)
async def test_its_timeout_finds_a_process_that_hangs_and_not_a_request_that_does(
    pair: Pair, release: str
) -> None:
    gateway = pair.gateway()
    gunicorn = pair.gunicorn(release, f"{TWO}timeout = 3")
    gateway.wait_ready()
    gateway.settles()
    connection = await Connection.open(gateway.address)
    assert (await connection.ask("GET", "/lab/stuck?seconds=5")).status == 200
    assert len(gunicorn.booted()) == 2

    os.kill(gunicorn.booted()[0], signal.SIGSTOP)
    await eventually("it is not replaced", lambda: len(gunicorn.booted()) == 3, 20)
    assert gunicorn.lines_with("WORKER TIMEOUT", str(gunicorn.booted()[0]))
    gateway.settles()


@story(60)
async def test_changed_code_is_served_without_a_lost_request(pair: Pair, release: str) -> None:
    module = pair.folder / "changing.py"

    def write(word: str) -> None:
        # Never the old size and time, by which Python tells whether its compiled code is right.
        module.write_text(
            "def application(environ, start_response):\n"
            "    start_response('200 OK', [('Content-Type', 'text/plain')])\n"
            f"    return [b'{word}']\n"
        )

    write("old")
    gateway = pair.gateway()
    gunicorn = pair.gunicorn(
        release,
        "bind = []\nthreads = 8\nreload = True\n",
        app="changing:application",
        directory=pair.folder,
    )
    gateway.wait_ready()
    over, seen = asyncio.Event(), set()

    async def look() -> None:
        connection = await Connection.open(gateway.address)
        while not over.is_set():
            answer = await connection.ask("GET", "/")
            assert answer.status == 200
            seen.add(answer.text)
            await asyncio.sleep(0.01)

    clients = [asyncio.create_task(look()) for _ in range(8)]
    await eventually("nothing is served", lambda: seen == {"old"}, 15)
    write("a newer one")
    await eventually("the change is not served", lambda: "a newer one" in seen, 20)

    # A mistake is shown, and mended without starting anything again.
    module.write_text("def application(:\n")
    over.set()
    await asyncio.gather(*clients)
    connection = await Connection.open(gateway.address)

    async def served(words: str) -> None:
        async with asyncio.timeout(20):
            while words not in (await connection.ask("GET", "/")).text:
                await asyncio.sleep(0.5)
                # Gunicorn misses a change that is there before it looks for the first time.
                module.touch()

    await served("importlib/__init__.py")  # one release shows more of it than the other
    write("mended")
    await served("mended")
    assert gunicorn.process.poll() is None


@story(60)
async def test_it_waits_for_a_gateway_and_outlives_it(pair: Pair, release: str) -> None:
    gunicorn = pair.gunicorn(release, f"{TWO}timeout = 3")
    gunicorn.wait_for("waiting for a gateway at unix:")
    # Longer than gunicorn's patience with a worker that gives no sign of life.
    await asyncio.sleep(4)
    assert len(gunicorn.booted()) == 2
    first = pair.gateway()
    first.wait_ready()
    first.settles()
    assert len(gunicorn.booted()) == 2
    first.signal(signal.SIGTERM)
    assert await asyncio.to_thread(first.wait) == 0

    second = pair.gateway()
    second.wait_ready()
    second.settles()
    connection = await Connection.open(second.address)
    assert (await connection.ask("GET", "/products/teapot/")).status == 200


@story(60)
async def test_flask_in_greenlet_mode_parks_and_drains(pair: Pair, stub: Services) -> None:
    stub.set(latency=1500)
    gateway = pair.gateway(GATEWAY.replace("count = 8", "count = 2"))
    gunicorn = pair.gunicorn(
        configuration="bind = []\nworkers = 2\nthreads = 1\n",
        app="greened:application",
        environment={"LAYBY_WORKERS_MODE": "greenlet"},
    )
    gateway.wait_ready()
    gateway.settles(2)
    connections = [await Connection.open(gateway.address) for _ in range(12)]
    asking = [
        asyncio.create_task(connection.ask("GET", f"/quote?number={number}&url={stub.url}/"))
        for number, connection in enumerate(connections)
    ]
    await eventually("not all park", lambda: gateway.parked() == len(asking), 15)
    gunicorn.signal(signal.SIGTERM)
    for number, answer in enumerate(await asyncio.gather(*asking)):
        assert (answer.status, answer.json()["number"]) == (200, str(number))
    assert await asyncio.to_thread(gunicorn.wait) == 0


@story(60)
async def test_its_log_is_gunicorns(pair: Pair, release: str) -> None:
    log = pair.folder / "error.log"
    gateway = pair.gateway()
    gunicorn = pair.gunicorn(
        release, f"{TWO}errorlog = {str(log)!r}\nraw_env = ['LAYBY_WORKERS_MODE=wsgi']\n"
    )
    gateway.wait_ready()
    gateway.settles()
    (first, _) = [line for line in log.read_text().splitlines() if "mode wsgi for shop" in line]
    assert re.match(r"\[\d{4}-\d\d-\d\d [\d:]+ [+-]\d{4}\] \[\d+\] \[INFO\] mode wsgi", first)
    # Rotation, as gunicorn knows it.
    log.rename(pair.folder / "error.log.1")
    gunicorn.signal(signal.SIGUSR1)
    await eventually("it is not opened again", log.exists, 10)
    gunicorn.signal(signal.SIGTERM)
    assert await asyncio.to_thread(gunicorn.wait) == 0
    assert "drain started" in log.read_text()


def test_a_socket_of_its_own_is_warned_of(pair: Pair) -> None:
    path = pair.folder / "own.sock"
    gunicorn = pair.gunicorn(configuration=f"bind = 'unix:{path}'\n")
    gunicorn.wait_for("nobody answers on gunicorn's own socket")


@pytest.mark.parametrize(
    ("environment", "app", "status", "why"),
    [
        ({"LAYBY_LINK": ""}, "plain", 1, "needs LAYBY_LINK=unix:PATH"),
        ({"LAYBY_LINK": "tcp://x:1"}, "plain", 1, "unix:PATH, the link of `layby serve`, not tcp"),
        ({"LAYBY_WORKERS_MODE": "fast"}, "plain", 1, "LAYBY_WORKERS_MODE must be auto,"),
        ({"LAYBY_WORKERS_MODE": "coroutine"}, "plain", 3, "needs Django's own WSGI application"),
    ],
)
def test_a_start_that_cannot_succeed_ends_it(
    pair: Pair, environment: dict[str, str], app: str, status: int, why: str
) -> None:
    # Gunicorn trips over two that fail at once.
    gunicorn = pair.gunicorn(configuration="bind = []\n", app=app, environment=environment)
    assert gunicorn.wait() == status
    assert why in gunicorn.log
    assert "Traceback" not in gunicorn.log


@story(60)
async def test_a_gateway_that_refuses_it_ends_it(pair: Pair) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(8)
        reason = b"speaks version 2"
        frame = bytes([0x04, 0, 0, 0]) + len(reason).to_bytes(4, "big") + bytes(16)
        writer.write(frame + reason)
        await writer.drain()
        writer.close()

    server = await asyncio.start_unix_server(refuse, pair.link)
    async with server:
        gunicorn = pair.gunicorn(configuration="bind = []\n")
        assert await asyncio.to_thread(gunicorn.wait) == 3
    assert "refused by the gateway: speaks version 2" in gunicorn.log


@story(60)
async def test_a_process_with_a_stuck_request_is_let_go_and_gunicorn_starts_another(
    pair: Pair,
) -> None:
    gateway = pair.gateway('[slots]\ncount = 8\nrequest_timeout = "1s"\noverdue_grace = "1s"\n')
    gunicorn = pair.gunicorn()
    gateway.wait_ready()
    gateway.settles()
    old = set(gunicorn.booted())
    connection = await Connection.open(gateway.address)
    answer = await connection.ask("GET", "/lab/stuck?seconds=60")
    assert answer.status == 504
    assert (await connection.ask("GET", "/healthz")).status == 200
    await eventually("it stays", lambda: len(gunicorn.booted()) == 3, 20)
    gateway.settles()
    assert len(set(gateway.worker_pids()) & old) == 1
    assert gateway.lines_with("was started by somebody else")
