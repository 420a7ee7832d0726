"""Origins inside the test: one that holds its answers back, and one that nobody may reach."""

from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import suppress

Address = tuple[str, int]


class Held(asyncio.Protocol):
    """One connection to a `HoldingOrigin`."""

    def __init__(self, origin: HoldingOrigin) -> None:
        self.origin = origin
        self.seen = b""
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.seen += data
        if self.seen.endswith(b"\r\n\r\n"):
            target = self.seen.split(b" ", 2)[1].decode()
            self.seen = b""
            self.origin.take(self, target)

    def connection_lost(self, exc: Exception | None) -> None:
        self.origin.held.pop(self, None)

    def answer(self, target: str) -> None:
        body = target.encode()
        head = f"HTTP/1.1 200 OK\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        self.transport.write(head.encode() + body)
        self.transport.close()


class HoldingOrigin:
    """Answers a GET with its own path, but not before `release()`."""

    def __init__(self) -> None:
        self.held: dict[Held, str] = {}
        self.released = False
        self.server: asyncio.Server
        self.url = ""

    async def __aenter__(self) -> HoldingOrigin:
        loop = asyncio.get_running_loop()
        self.server = await loop.create_server(lambda: Held(self), "127.0.0.1", 0, backlog=4096)
        self.url = f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self.server.close()
        for connection in self.held:
            connection.transport.abort()

    def take(self, connection: Held, target: str) -> None:
        if self.released:
            connection.answer(target)
        else:
            self.held[connection] = target

    def release(self) -> None:
        self.released = True
        held, self.held = self.held, {}
        for connection, target in held.items():
            connection.answer(target)


class ForbiddenListener:
    """Counts who connects to it: nobody should."""

    def __init__(self) -> None:
        self.accepted = 0
        self.sockets = [socket.create_server(("127.0.0.1", 0), backlog=64)]
        self.port: int = self.sockets[0].getsockname()[1]
        with suppress(OSError):  # a machine without IPv6
            self.sockets.append(
                socket.create_server(("::1", self.port), family=socket.AF_INET6, backlog=64)
            )
        self.threads = [threading.Thread(target=self._accept, args=(s,)) for s in self.sockets]

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):  # it was shut down
            while True:
                client, _ = listener.accept()
                self.accepted += 1
                client.close()

    def __enter__(self) -> ForbiddenListener:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for listener in self.sockets:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        for thread in self.threads:
            thread.join()
