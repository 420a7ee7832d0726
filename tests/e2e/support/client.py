"""An HTTP/1.1 client of which one process can run thousands, and which can leave at any moment.

It is strict: a byte more than the answer announced is kept in `surplus`, so that a test can see
that there was exactly one answer.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from http.cookies import SimpleCookie
from typing import Any, ClassVar
from urllib.parse import urlencode

Address = tuple[str, int]
Headers = Iterable[tuple[str, str]]


class Gone(Exception):
    """The connection ended before the answer was whole; `str()` is what came of it."""


class NotHTTP(Exception):
    """What came is no HTTP answer."""


@dataclass
class Answer:
    status: int
    headers: list[tuple[str, str]]
    body: bytes
    seconds: float  # from the request's first byte to the answer's last

    def header(self, name: str) -> str | None:
        found = [value for key, value in self.headers if key.lower() == name]
        return ", ".join(found) if found else None

    @property
    def text(self) -> str:
        return self.body.decode()

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class _Head:
    status: int
    headers: list[tuple[str, str]]
    length: int | None = None  # None: until the connection ends
    chunked: bool = False


class Connection(asyncio.Protocol):
    """One connection: a request, its answer, the next request."""

    live: ClassVar[set[Connection]] = set()

    def __init__(self) -> None:
        self.surplus = bytearray()
        self.closed = False
        self.transport: asyncio.Transport
        self._head: _Head | None = None
        self._waiting: asyncio.Future[Answer] | None = None
        self._method = ""
        self._sent = 0.0
        self._closing: asyncio.Event = asyncio.Event()

    @classmethod
    async def open(cls, address: Address) -> Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(cls, *address)
        return connection

    @classmethod
    async def end_all(cls) -> None:
        """Close what a test left open."""
        ending = list(cls.live)
        for connection in ending:
            connection.transport.abort()
        for connection in ending:
            await connection.ended()

    # What tests do with it.

    def send(
        self, method: str, path: str, headers: Headers = (), body: bytes = b"", *, later: int = 0
    ) -> None:
        """Send a request; its answer is waited for with `answer()`. Names are lower case.

        Of its body, `later` bytes are announced and come with `go_on()`.
        """
        assert self._waiting is None, "one request at a time"
        assert not self.surplus, f"more than one answer: {bytes(self.surplus[:500])!r}"
        headers = list(headers)
        lines = [f"{method} {path} HTTP/1.1"]
        if not any(name == "host" for name, _ in headers):
            lines.append("host: 127.0.0.1")
        lines += [f"{name}: {value}" for name, value in headers]
        if body or later or method in ("POST", "PUT", "PATCH"):
            lines.append(f"content-length: {len(body) + later}")
        self._method = method
        self._waiting = asyncio.get_running_loop().create_future()
        self._sent = time.monotonic()
        if self.closed:
            self._end(Gone("closed before the request"))
        else:
            self.transport.write("\r\n".join([*lines, "", ""]).encode("latin-1") + body)

    def go_on(self, data: bytes) -> None:
        """More of the body; to nobody, if the connection has ended."""
        if not self.closed:
            self.transport.write(data)

    async def answer(self) -> Answer:
        assert self._waiting is not None
        try:
            return await self._waiting
        finally:
            self._waiting = None

    async def ask(self, method: str, path: str, headers: Headers = (), body: bytes = b"") -> Answer:
        self.send(method, path, headers, body)
        return await self.answer()

    def reset(self) -> None:
        """Leave as a crashed client does."""
        client: socket.socket = self.transport.get_extra_info("socket")
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def close(self) -> None:
        """Leave in good order."""
        self.transport.close()

    async def ended(self) -> None:
        """Wait until the gateway closes the connection."""
        await self._closing.wait()

    # From the socket.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.live.add(self)

    def data_received(self, data: bytes) -> None:
        self.surplus += data
        try:
            answer = self._parse(ended=False)
        except NotHTTP as error:
            self._end(error)
            self.transport.abort()
            return
        if answer is not None:
            self._end(answer)

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self.live.discard(self)
        self._closing.set()
        try:
            answer = self._parse(ended=True)
        except NotHTTP as error:
            self._end(error)
            return
        self._end(answer or Gone(f"{exc!r} after {bytes(self.surplus[:200])!r}"))

    def _end(self, outcome: Answer | Exception) -> None:
        waiting = self._waiting
        if waiting is None or waiting.done():
            return
        if isinstance(outcome, Answer):
            waiting.set_result(outcome)
        else:
            waiting.set_exception(outcome)
            waiting.exception()  # seen, even if the test does not ask

    # Bytes to answers.

    def _parse(self, *, ended: bool) -> Answer | None:
        if self._waiting is None or self._waiting.done():
            return None  # Nobody asked: it stays in `surplus`.
        while self._head is None or self._head.status < 200:
            end = self.surplus.find(b"\r\n\r\n")
            if end < 0:
                return None
            self._head = self._read_head(bytes(self.surplus[:end]))
            del self.surplus[: end + 4]
        head = self._head
        body = self._read_chunks() if head.chunked else self._read_body(head, ended)
        if body is None:
            return None
        self._head = None
        return Answer(head.status, head.headers, body, time.monotonic() - self._sent)

    def _read_head(self, text: bytes) -> _Head:
        first, *lines = text.decode("latin-1").split("\r\n")
        version, _, rest = first.partition(" ")
        if version != "HTTP/1.1" or not rest[:3].isdigit():
            raise NotHTTP(f"a status line {first!r}")
        headers = []
        for line in lines:
            name, colon, value = line.partition(":")
            if not colon or not name or name != name.strip():
                raise NotHTTP(f"a header {line!r}")
            headers.append((name, value.strip()))
        head = _Head(int(rest[:3]), headers)
        values = {name.lower(): value for name, value in headers}
        if self._method == "HEAD" or head.status in (204, 304) or head.status < 200:
            head.length = 0
        elif "transfer-encoding" in values:
            if values["transfer-encoding"] != "chunked" or "content-length" in values:
                raise NotHTTP(f"ambiguous framing: {values}")
            head.chunked = True
        elif "content-length" in values:
            head.length = int(values["content-length"])
        return head

    def _read_body(self, head: _Head, ended: bool) -> bytes | None:
        length = head.length
        if length is None:
            if not ended:
                return None
            length = len(self.surplus)
        if len(self.surplus) < length:
            return None
        body = bytes(self.surplus[:length])
        del self.surplus[:length]
        return body

    def _read_chunks(self) -> bytes | None:
        """The whole body, or nothing yet: small answers do not deserve better."""
        body, at = bytearray(), 0
        while (line := self.surplus.find(b"\r\n", at)) >= 0:
            try:
                size = int(self.surplus[at:line], 16)
            except ValueError:
                raise NotHTTP(f"a chunk of size {bytes(self.surplus[at:line])!r}") from None
            at = line + 2 + size
            if len(self.surplus) < at + 2:
                return None
            body += self.surplus[line + 2 : at]
            if self.surplus[at : at + 2] != b"\r\n":
                raise NotHTTP("a chunk longer than it says")
            at += 2
            if size == 0:
                del self.surplus[:at]
                return bytes(body)
        return None


@dataclass
class Browser:
    """A person's client: one connection, cookies, a language, forms with CSRF tokens."""

    address: Address
    language: str = "en"
    cookies: dict[str, str] = field(default_factory=dict)
    connection: Connection | None = None

    async def ask(self, method: str, path: str, headers: Headers = (), body: bytes = b"") -> Answer:
        if self.connection is None or self.connection.closed:
            self.connection = await Connection.open(self.address)
        own = [("accept-language", self.language)]
        if self.cookies:
            pairs = (f"{name}={value}" for name, value in self.cookies.items())
            own.append(("cookie", "; ".join(pairs)))
        answer = await self.connection.ask(method, path, [*own, *headers], body)
        for name, value in answer.headers:
            if name.lower() == "set-cookie":
                jar = SimpleCookie(value)
                self.cookies |= {name: morsel.value for name, morsel in jar.items()}
        return answer

    async def get(self, path: str) -> Answer:
        return await self.ask("GET", path)

    async def post(self, path: str, *, token: str | None = None, **fields: str) -> Answer:
        """Send a form, with our CSRF token unless another is given."""
        own = self.cookies.get("csrftoken", "") if token is None else token
        body = urlencode({**fields, "csrfmiddlewaretoken": own}).encode()
        kind = ("content-type", "application/x-www-form-urlencoded")
        return await self.ask("POST", path, [kind], body)

    async def post_json(self, path: str, value: object) -> Answer:
        kind = ("content-type", "application/json")
        return await self.ask("POST", path, [kind], json.dumps(value).encode())

    async def log_in(self, user: str, password: str) -> None:
        await self.get("/login/")
        answer = await self.post("/login/", username=user, password=password)
        assert answer.status == 302, (user, answer.status, answer.text[:500])
        assert "sessionid" in self.cookies, user

    def close(self) -> None:
        if self.connection is not None:
            self.connection.close()
