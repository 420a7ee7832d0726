"""Untouched application servers behind `layby serve --upstream`: exchanges with them, recorded
directly and through the gateway, are the same."""

from __future__ import annotations

import http.client
import os
import random
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from websockets.sync.client import connect, unix_connect
from websockets.sync.server import ServerConnection, unix_serve

from support.gateway import Gateway
from support.places import APPS
from support.program import Program

MIRROR = APPS / "mirror"

# With each server. Some seven thousand requests in all, half of them direct.
EXCHANGES = 1200

ENVIRONMENT = {"PATH": os.environ["PATH"], "PYTHONPATH": str(MIRROR)}


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("app.example", timeout=30)
        self.path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class Server(NamedTuple):
    """How it is started, its socket coming last, and how much it works on at once."""

    command: list[str]
    ready: str
    slots: int


def gunicorn(*arguments: str) -> list[str]:
    command = [sys.executable, "-m", "gunicorn", "mirror:application", "--no-control-socket"]
    return [*command, *arguments, "--bind"]


SERVERS = {
    "sync": Server(gunicorn("-k", "sync", "-w", "2"), "Booting worker", 2),
    "gthread": Server(gunicorn("-k", "gthread", "--threads", "4"), "Booting worker", 4),
    "node": Server(["node", str(MIRROR / "mirror.js")], "listening", 16),
}


@contextmanager
def served(name: str, folder: Path, **settings: str) -> Iterator[tuple[Program, Path, Gateway]]:
    server = SERVERS[name]
    path = folder / "app.sock"
    address = str(path) if name == "node" else f"unix:{path}"
    with ExitStack() as running:
        app = Program(
            name,
            [*server.command, address],
            environment=ENVIRONMENT,
            directory=folder,
            log=folder / "app.log",
        )
        running.callback(app.end)
        app.wait_for(server.ready)
        gateway = Gateway(
            upstream=f"unix:{path}",
            folder=folder,
            environment={**ENVIRONMENT, **settings},
            flags=(f"--slots={server.slots}",),
        )
        running.callback(gateway.end)
        gateway.wait_ready()
        yield app, path, gateway


class Exchange(NamedTuple):
    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes
    chunked: bool


def exchange(chance: random.Random) -> Exchange:
    """One of those that browsers, scripts and other services have with an application."""
    method = chance.choice(
        ["GET"] * 6 + ["POST"] * 4 + ["HEAD", "PUT", "PATCH", "DELETE", "OPTIONS"]
    )
    query = [f"q={chance.randrange(10**6)}"]
    size = chance.choice([0, 0, 300, 5_000, 70_000, 400_000])
    query.append(f"size={size}")
    if chance.random() < 0.2:
        query.append("stream=1")
    if chance.random() < 0.3:
        query.append(f"cookies={chance.randrange(4)}")
    if chance.random() < 0.1:
        query.append("status=302%20Found&to=/elsewhere%3Fa%3Db%26c")
    elif chance.random() < 0.2:
        statuses = ["204%20No%20Content", "304%20Not%20Modified", "404%20Not%20Found"]
        query.append(
            "status=" + chance.choice([*statuses, "500%20Oops", "418%20Short%20and%20stout"])
        )
    path = chance.choice(["/", "/a%20b", "/%C3%A4/x", "/a//b", "/a;b=c", "/%2F%25"])
    headers = [("Accept", "text/html, */*;q=0.8"), ("Cookie", "a=1; b=2"), ("X-Empty", "")]
    if chance.random() < 0.15:
        headers.append(("Range", f"bytes={chance.randrange(50)}-{chance.randrange(50, 5000)}"))
    if chance.random() < 0.2:
        headers.append(("If-None-Match", '"abc"'))
    body = b""
    if method in ("POST", "PUT", "PATCH"):
        body = chance.randbytes(chance.choice([0, 1, 300, 5_000, 70_000, 300_000]))
        headers.append(("Content-Type", chance.choice(["application/json", "image/png"])))
    return Exchange(method, f"{path}?{'&'.join(query)}", headers, body, chance.random() < 0.2)


# What belongs to one hop, or to the moment.
UNEQUAL = {"connection", "keep-alive", "date", "x-request-id"}


def record(connection: http.client.HTTPConnection, one: Exchange) -> Any:
    """What a client sees of it."""
    connection.putrequest(one.method, one.target, skip_host=True, skip_accept_encoding=True)
    connection.putheader("Host", "app.example")
    for name, value in one.headers:
        connection.putheader(name, value)
    if one.method in ("POST", "PUT", "PATCH"):
        # gunicorn's workers do not read chunks for applications that go by Content-Length.
        connection.putheader("Content-Length", str(len(one.body)))
    connection.endheaders(one.body)
    response = connection.getresponse()
    body = response.read()
    headers = [(name.lower(), value) for name, value in response.getheaders()]
    # How a body is framed may change where it is known in one go; that it is whole is seen from it.
    framed = any(name == "transfer-encoding" for name, _ in headers)
    kept = sorted(
        (pair for pair in headers if pair[0] not in UNEQUAL | {"transfer-encoding"}),
        key=lambda pair: pair[0],
    )
    return response.status, response.reason, kept, body, framed


def same(direct: Any, through: Any) -> bool:
    if direct[4]:
        # It had no length before.
        direct, through = (
            (*one[:2], [pair for pair in one[2] if pair[0] != "content-length"], one[3])
            for one in (direct, through)
        )
    return bool(direct[:4] == through[:4])


@pytest.mark.parametrize("name", SERVERS)
def test_exchanges_are_the_same_as_without_the_gateway(name: str, tmp_path: Path) -> None:
    # A short path, as Unix sockets need one.
    folder = Path(f"/tmp/layby-{os.getpid()}-{name}")
    folder.mkdir()
    with served(name, folder) as (_, path, gateway):

        def compare(seed: int) -> list[Exchange]:
            """On two connections, as long as they last, so that many follow each other on each."""
            chance = random.Random(f"{name} {seed}")
            unequal = []
            direct = UnixConnection(path)
            through = http.client.HTTPConnection(*gateway.address, timeout=30)
            for _ in range(EXCHANGES // 4):
                one = exchange(chance)
                if name == "sync":
                    # Its connections carry one request each.
                    direct.close()
                if not same(record(direct, one), record(through, one)):
                    unequal.append(one)
                direct.close() if name == "gthread" else None
            direct.close()
            through.close()
            return unequal

        # A worker of gunicorn's that waits for a client of ours would be missed by the gateway.
        threads = 1 if name == "sync" else 4
        with ThreadPoolExecutor(threads) as pool:
            unequal = [one for some in pool.map(compare, range(4)) for one in some]
        assert not unequal, unequal[:3]
        gateway.settles(SERVERS[name].slots)
        assert not gateway.lines_with("ERROR")
    shutil.rmtree(folder)


def test_a_restart_of_gunicorn_is_a_wait_and_no_error(tmp_path: Path) -> None:
    folder = Path(f"/tmp/layby-{os.getpid()}-restart")
    folder.mkdir()
    with served("gthread", folder) as (app, _, gateway):
        over = threading.Event()

        def client(_: int) -> list[int]:
            statuses = []
            while not over.is_set():
                connection = http.client.HTTPConnection(*gateway.address, timeout=30)
                connection.request("POST", "/", b"x" * 100)
                response = connection.getresponse()
                response.read()
                statuses.append(response.status)
                connection.close()
            return statuses

        with ThreadPoolExecutor(8) as pool:
            running = [pool.submit(client, number) for number in range(8)]
            for _ in range(2):
                # New workers take over from the old ones, which finish what they have.
                booted = len(app.lines_with("Booting worker"))
                app.signal(signal.SIGHUP)
                while len(app.lines_with("Booting worker")) == booted:
                    over.wait(0.05)
                over.wait(0.5)
            over.set()
            statuses = [status for one in running for status in one.result()]
        assert len(statuses) > 200
        # A request may be in the hands of a worker at its end; nothing else goes wrong.
        assert statuses.count(200) >= len(statuses) - 4, {
            each: statuses.count(each) for each in {*statuses}
        }
        gateway.settles(4)
    shutil.rmtree(folder)


def test_websockets_pass_with_every_byte(tmp_path: Path) -> None:
    folder = Path(f"/tmp/layby-{os.getpid()}-ws")
    folder.mkdir()
    path = folder / "ws.sock"

    def echo(websocket: ServerConnection) -> None:
        for message in websocket:
            websocket.send(message)

    with unix_serve(echo, str(path), max_size=None) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        gateway = Gateway(
            upstream=f"unix:{path}", folder=folder, environment=ENVIRONMENT, flags=("--slots=4",)
        )
        try:
            gateway.wait_ready()
            chance = random.Random(7)
            messages: list[str | bytes] = ["", "ä" * 1000, b"", chance.randbytes(1_000_000)]
            messages += [chance.randbytes(chance.randrange(70_000)) for _ in range(200)]

            def chat(_: int) -> None:
                url = f"ws://127.0.0.1:{gateway.port}/chat"
                with connect(url, max_size=None) as websocket:
                    for message in messages:
                        websocket.send(message)
                        assert websocket.recv() == message
                    websocket.ping().wait()

            with ThreadPoolExecutor(3) as pool:
                list(pool.map(chat, range(3)))
            gateway.settles(4)
            # The same without the gateway, so that what is compared with is right.
            with unix_connect(str(path), max_size=None) as websocket:
                websocket.send(messages[1])
                assert websocket.recv() == messages[1]
        finally:
            gateway.end()
            server.shutdown()
            thread.join()
    shutil.rmtree(folder)
