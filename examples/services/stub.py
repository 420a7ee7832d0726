"""A stand-in for the third parties of the shop: shipping, payment and fraud.

One file, standard library only, so that it runs anywhere: for the demonstration, as an origin in
tests, and under benchmarks. It is an `asyncio.Protocol` because thousands of connections must be
held at once for next to no CPU: a request that waits is one timer, not a task.

    GET  /shipping/quote     a carrier and a number of days
    POST /payment/charge     charges `reference`; every charge is counted, none is made idempotent
    POST /fraud/check        a verdict
    GET  /  /echo  /bytes/N  /redirect?to=URL     an ordinary origin, for tests

What is to go wrong is said by query parameters, by `Stub-*` request headers or for everybody
through `POST /control/settings`, in this order of precedence:

    latency=MS    wait before answering
    status=CODE   answer with this status; 400 and more charge nothing
    fault=reset   half the answer, then a TCP reset
    fault=cut     half the answer, then an orderly close
    fault=stall   half the answer, then silence for as long as the client stays
    fault=drip    the answer's body byte by byte, `drip=MS` apart (default 50)
    fault=garbage bytes that are not HTTP

`GET /control` counts what was served, `GET /control/charges` is the ledger of references charged,
`POST /control/reset` clears both and the settings.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http
import json
import re
import resource
import signal
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import parse_qsl

MAX_HEAD = 64 * 1024
MAX_BODY = 64 * 1024 * 1024
# Bytes read ahead of the request being served. Beyond it a client that pipelines has to wait.
MAX_AHEAD = 256 * 1024

TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\r\n]*)?")
FAULTS = frozenset({"reset", "cut", "stall", "drip", "garbage"})
SERVICES = ("shipping", "payment", "fraud")
REASONS = {status.value: status.phrase for status in http.HTTPStatus}


class BadRequest(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


# Requests, from bytes.


@dataclass(slots=True)
class Request:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    keep_alive: bool
    body: bytes = b""

    def json(self) -> dict[str, Any]:
        try:
            value = json.loads(self.body)
        except ValueError:
            raise BadRequest(400, "the body is not JSON") from None
        if not isinstance(value, dict):
            raise BadRequest(400, "the body is not a JSON object")
        return value


class Parser:
    """Bytes in, requests out; never touches a socket.

    What could be read in two ways is refused, so that a gateway in front cannot be fooled by a
    lenient origin in its own tests.
    """

    __slots__ = ("buffer", "chunked", "chunks", "expects", "length", "request")

    def __init__(self) -> None:
        self.buffer = bytearray()
        self.request: Request | None = None
        self.length = 0
        self.chunked = False
        self.chunks: list[bytes] = []
        self.expects = False  # the client holds its body back until it reads a 100

    def next_request(self) -> Request | None:
        """The next whole request, or None until more bytes are fed."""
        if self.request is None and not self._head():
            return None
        assert self.request is not None
        if self.chunked:
            if not self._chunks():
                return None
            self.request.body = b"".join(self.chunks)
            self.chunks = []
        elif self.length:
            if len(self.buffer) < self.length:
                return None
            self.request.body = bytes(self.buffer[: self.length])
            del self.buffer[: self.length]
        request, self.request = self.request, None
        self.expects = False
        return request

    def _head(self) -> bool:
        while self.buffer[:2] == b"\r\n":  # RFC 9112, 2.2: empty lines before a request are skipped
            del self.buffer[:2]
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0 or end > MAX_HEAD:
            if len(self.buffer) > MAX_HEAD:
                raise BadRequest(431, "the head is too large")
            return False
        lines = self.buffer[:end].decode("latin-1").split("\r\n")
        del self.buffer[: end + 4]

        parts = lines[0].split(" ")
        if len(parts) != 3 or parts[2] not in ("HTTP/1.1", "HTTP/1.0"):
            raise BadRequest(400, "not a request line")
        method, target, version = parts
        if not TOKEN.fullmatch(method) or not target.isprintable():
            raise BadRequest(400, "not a request line")
        if target.startswith("http://"):
            target = "/" + target[7:].partition("/")[2]
        if target[:1] != "/":
            raise BadRequest(400, "only paths are served")

        headers: dict[str, str] = {}
        for line in lines[1:]:
            name, colon, value = line.partition(":")
            if not colon or not TOKEN.fullmatch(name) or "\n" in value or "\r" in value:
                raise BadRequest(400, "not a header line")
            name = name.lower()
            value = value.strip(" \t")
            if name in headers:
                if name in ("host", "content-length", "transfer-encoding"):
                    raise BadRequest(400, f"{name} more than once")
                value = f"{headers[name]}, {value}"
            headers[name] = value
        if version != "HTTP/1.0" and "host" not in headers:
            raise BadRequest(400, "no host")

        self._framing(headers)
        path, _, query = target.partition("?")
        connection = headers.get("connection", "").lower()
        self.request = Request(
            method,
            path,
            dict(parse_qsl(query, keep_blank_values=True)) if query else {},
            headers,
            "close" not in connection and (version != "HTTP/1.0" or "keep-alive" in connection),
        )
        self.expects = headers.get("expect", "").lower() == "100-continue"
        return True

    def _framing(self, headers: Mapping[str, str]) -> None:
        coding = headers.get("transfer-encoding")
        length = headers.get("content-length")
        if coding is not None and length is not None:
            raise BadRequest(400, "content-length beside transfer-encoding")
        if coding is not None and coding.lower() != "chunked":
            raise BadRequest(501, "only chunked is understood")
        if length is not None and not (length.isascii() and length.isdigit()):
            raise BadRequest(400, "content-length is not a number")
        self.chunked = coding is not None
        self.length = int(length) if length is not None and len(length) < 20 else 0
        if length is not None and (len(length) >= 20 or self.length > MAX_BODY):
            raise BadRequest(413, "the body is too large")

    def _chunks(self) -> bool:
        """Move whole chunks out of the buffer; true after the last one and its trailers."""
        while True:
            line = self.buffer.find(b"\r\n")
            if line < 0:
                if len(self.buffer) > MAX_HEAD:
                    raise BadRequest(400, "not a chunk")
                return False
            match = CHUNK_SIZE.fullmatch(self.buffer[:line])
            if not match:
                raise BadRequest(400, "not a chunk")
            size = int(match[1], 16)
            if size == 0:
                end = line if self.buffer[line : line + 4] == b"\r\n\r\n" else -1
                end = end if end >= 0 else self.buffer.find(b"\r\n\r\n", line)
                if end < 0:
                    if len(self.buffer) > MAX_HEAD:
                        raise BadRequest(431, "the trailers are too large")
                    return False
                del self.buffer[: end + 4]
                return True
            start = line + 2
            if size > MAX_BODY:
                raise BadRequest(413, "the body is too large")
            if len(self.buffer) < start + size + 2:
                return False
            if self.buffer[start + size : start + size + 2] != b"\r\n":
                raise BadRequest(400, "a chunk is longer than it says")
            self.chunks.append(bytes(self.buffer[start : start + size]))
            del self.buffer[: start + size + 2]
            self.length += size
            if self.length > MAX_BODY:
                raise BadRequest(413, "the body is too large")


# What is to go wrong.


@dataclass(slots=True, frozen=True)
class Behaviour:
    latency: float = 0.0  # seconds
    status: int = 200
    fault: str | None = None
    drip: float = 0.05  # seconds between two bytes


KNOBS = frozenset({"latency", "status", "fault", "drip"})


def behaviour(settings: Mapping[str, object]) -> Behaviour:
    """Settings as they are written (milliseconds, numbers perhaps as text) to a Behaviour."""
    try:
        latency = float(cast(Any, settings.get("latency", 0))) / 1000
        drip = float(cast(Any, settings.get("drip", 50))) / 1000
        status = int(cast(Any, settings.get("status", 200)))
    except (TypeError, ValueError):
        raise BadRequest(400, "latency, drip and status are numbers") from None
    fault = cast("str | None", settings.get("fault") or None)
    if not (0 <= latency < 86_400 and 0 <= drip < 3_600 and 200 <= status <= 599):
        raise BadRequest(400, "latency, drip or status is out of range")
    if fault is not None and fault not in FAULTS:
        raise BadRequest(400, f"fault is one of {', '.join(sorted(FAULTS))}")
    return Behaviour(latency, status, fault, drip)


@dataclass
class Stub:
    """What all connections share: the settings, the counts and the ledger."""

    latency: float = 0.0  # milliseconds
    settings: dict[str, dict[str, object]] = field(default_factory=dict)
    served: Counter[str] = field(default_factory=Counter)
    charges: Counter[str] = field(default_factory=Counter)
    charged: int = 0  # the sum of charges
    left: int = 0  # clients that went away before their answer was out
    held: int = 0  # requests being answered now
    most_held: int = 0
    connections: int = 0
    most_connections: int = 0

    def behaviour(self, service: str, request: Request) -> Behaviour:
        own: dict[str, object] = {"latency": self.latency}
        own |= self.settings.get("all", {})
        own |= self.settings.get(service, {})
        own |= {
            name: request.headers[f"stub-{name}"]
            for name in KNOBS
            if f"stub-{name}" in request.headers
        }
        own |= {name: value for name, value in request.query.items() if name in KNOBS}
        return behaviour(own)

    def set(self, wanted: Mapping[str, object]) -> None:
        """`{"latency": 1000}` for all services, `{"payment": {"status": 500}}` for one."""
        fresh: dict[str, dict[str, object]] = {"all": {}}
        for name, value in wanted.items():
            if name in SERVICES and isinstance(value, dict) and not value.keys() - KNOBS:
                behaviour(value)
                fresh[name] = value
            elif name in KNOBS:
                fresh["all"][name] = value
            else:
                raise BadRequest(400, f"unknown setting: {name}")
        behaviour(fresh["all"])
        self.settings = fresh

    def reset(self) -> None:
        self.settings = {}
        self.served.clear()
        self.charges.clear()
        self.charged = 0
        self.left = 0
        self.most_held = self.held
        self.most_connections = self.connections

    def counts(self) -> dict[str, object]:
        return {
            "served": dict(self.served),
            "charged": self.charged,
            "held": self.held,
            "most_held": self.most_held,
            "connections": self.connections,
            "most_connections": self.most_connections,
            "left": self.left,
            "settings": self.settings,
            "cpu_seconds": round(time.process_time(), 3),
        }


# Answers, to bytes.

CLOSE = "connection: close\r\n"


@dataclass(slots=True)
class Answer:
    status: int
    body: bytes
    type: str = "application/json"
    headers: str = ""

    def head(self, close: bool) -> bytes:
        framing = "" if self.status in (204, 304) else f"content-length: {len(self.body)}\r\n"
        return (
            f"HTTP/1.1 {self.status} {REASONS.get(self.status, 'Unknown')}\r\n"
            f"content-type: {self.type}\r\n{framing}{self.headers}"
            f"{CLOSE if close else ''}\r\n"
        ).encode("latin-1")


def as_json(value: object, status: int = 200) -> Answer:
    return Answer(status, json.dumps(value).encode() + b"\n")


class Connection(asyncio.Protocol):
    """One client: one request at a time, answered in the order they came."""

    __slots__ = ("busy", "loop", "parser", "paused", "stub", "timer", "transport")

    def __init__(self, stub: Stub) -> None:
        self.stub = stub
        self.loop = asyncio.get_running_loop()
        self.parser = Parser()
        self.busy = False
        self.paused = False
        self.timer: asyncio.TimerHandle | None = None
        self.transport: asyncio.Transport

    # From the socket.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        stub = self.stub
        stub.connections += 1
        stub.most_connections = max(stub.most_connections, stub.connections)

    def connection_lost(self, exc: Exception | None) -> None:
        self.stub.connections -= 1
        if self.timer is not None:
            self.timer.cancel()
        if self.busy:
            self.busy = False
            self.stub.held -= 1
            self.stub.left += 1

    def data_received(self, data: bytes) -> None:
        self.parser.buffer += data
        if not self.busy:
            self.serve()
        elif len(self.parser.buffer) > MAX_AHEAD:
            self.paused = True
            self.transport.pause_reading()

    # From request to answer.

    def serve(self) -> None:
        """Serve what is in the buffer, until a request has to wait or is not whole."""
        try:
            while not self.busy and not self.transport.is_closing():
                request = self.parser.next_request()
                if request is None:
                    if self.parser.expects:
                        self.parser.expects = False
                        self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                    return
                self.begin(request)
        except BadRequest as error:
            # What follows on this connection can no longer be told apart.
            answer = as_json({"error": str(error)}, error.status)
            self.transport.write(answer.head(close=True) + answer.body)
            self.transport.close()

    def begin(self, request: Request) -> None:
        stub = self.stub
        service = request.path[1:].partition("/")[0]
        try:
            if service == "control":
                plain = Behaviour()
                answer = control(stub, request)
            else:
                stub.served[service if service in SERVICES else "other"] += 1
                plain = stub.behaviour(service, request)
                answer = ENDPOINTS.get(service, missing)(stub, request, plain)
        except BadRequest as error:
            plain = Behaviour()
            answer = as_json({"error": str(error)}, error.status)

        self.busy = True
        stub.held += 1
        stub.most_held = max(stub.most_held, stub.held)
        if plain.latency:
            self.timer = self.loop.call_later(
                plain.latency, self.answer_late, request, answer, plain
            )
        else:
            self.answer(request, answer, plain)

    def answer_late(self, request: Request, answer: Answer, plain: Behaviour) -> None:
        self.timer = None
        self.answer(request, answer, plain)
        if not self.busy:
            self.serve()

    def answer(self, request: Request, answer: Answer, plain: Behaviour) -> None:
        head = answer.head(close=not request.keep_alive)
        body = b"" if request.method == "HEAD" or answer.status in (204, 304) else answer.body
        half = len(body) // 2
        match plain.fault:
            case None:
                self.transport.write(head + body)
                self.done(close=not request.keep_alive)
            case "cut":
                self.transport.write(head + body[:half])
                self.done(close=True)
            case "reset":
                # The reset must not overtake the half that the client is meant to see.
                self.transport.write(head + body[:half])
                self.timer = self.loop.call_later(0.02, self.reset)
            case "stall":
                self.transport.write(head + body[:half])
            case "drip":
                self.transport.write(head)
                self.drip(request, body, 0, plain.drip)
            case "garbage":
                self.transport.write(b"\x16\x03\x01 this is not HTTP\n\n")
                self.done(close=True)

    def drip(self, request: Request, body: bytes, sent: int, gap: float) -> None:
        self.timer = None
        self.transport.write(body[sent : sent + 1])
        if sent + 1 < len(body):
            self.timer = self.loop.call_later(gap, self.drip, request, body, sent + 1, gap)
            return
        self.done(close=not request.keep_alive)
        self.serve()

    def reset(self) -> None:
        self.done(close=False)
        # Closing a socket that lingers for no time is how a reset is asked for.
        client = self.transport.get_extra_info("socket")
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def done(self, *, close: bool) -> None:
        self.busy = False
        self.stub.held -= 1
        if close:
            self.transport.close()
        elif self.paused:
            self.paused = False
            self.transport.resume_reading()


# What is behind the paths.


def shipping(stub: Stub, request: Request, plain: Behaviour) -> Answer:
    if request.path != "/shipping/quote" or request.method not in ("GET", "HEAD"):
        return missing(stub, request, plain)
    if plain.status >= 400:
        return as_json({"error": "no quote"}, plain.status)
    grams = request.query.get("grams", "")
    price = 390 + (int(grams) // 10 if grams.isascii() and grams.isdigit() else 0)
    quote = {"carrier": "Postal Owl", "days": 2, "price": f"{price / 100:.2f}"}
    return as_json(quote | {"zip": request.query.get("zip", "")}, plain.status)


def payment(stub: Stub, request: Request, plain: Behaviour) -> Answer:
    if request.path != "/payment/charge" or request.method != "POST":
        return missing(stub, request, plain)
    order = request.json()
    reference = order.get("reference")
    if not isinstance(reference, str):
        raise BadRequest(400, "reference is missing")
    if plain.status >= 400:
        return as_json({"error": "declined", "reference": reference}, plain.status)
    # Money moves when the request is in, whatever becomes of the answer.
    stub.charges[reference] += 1
    stub.charged += 1
    charge = {"charge": f"ch_{stub.charged}", "reference": reference}
    return as_json(charge | {"amount": order.get("amount")}, plain.status)


def fraud(stub: Stub, request: Request, plain: Behaviour) -> Answer:
    if request.path != "/fraud/check" or request.method != "POST":
        return missing(stub, request, plain)
    order = request.json()
    if plain.status >= 400:
        return as_json({"error": "no verdict"}, plain.status)
    verdict = "review" if order.get("zip") == "00000" else "accept"
    return as_json({"reference": order.get("reference"), "verdict": verdict}, plain.status)


def root(stub: Stub, request: Request, plain: Behaviour) -> Answer:
    return as_json({"ok": True}, plain.status)


def echo(stub: Stub, request: Request, plain: Behaviour) -> Answer:
    seen = {
        "method": request.method,
        "path": request.path,
        "query": request.query,
        "headers": request.headers,
        "body": request.body.decode("latin-1"),
    }
    return as_json(seen, plain.status)


def sized(stub: Stub, request: Request, plain: Behaviour) -> Answer:
    count = request.path.removeprefix("/bytes/")
    if not (count.isascii() and count.isdigit() and len(count) < 12 and int(count) <= MAX_BODY):
        return missing(stub, request, plain)
    return Answer(plain.status, b"x" * int(count), "application/octet-stream")


def redirect(stub: Stub, request: Request, plain: Behaviour) -> Answer:
    to = request.query.get("to", "/")
    if not to.isascii() or not to.isprintable():
        raise BadRequest(400, "not a place to redirect to")
    status = plain.status if plain.status != 200 else 302
    return Answer(status, b"", "text/plain", f"location: {to}\r\n")


def missing(stub: Stub, request: Request, plain: Behaviour) -> Answer:
    return as_json({"error": f"there is no {request.method} {request.path}"}, 404)


def control(stub: Stub, request: Request) -> Answer:
    match request.method, request.path:
        case "GET", "/control":
            return as_json(stub.counts())
        case "GET", "/control/charges":
            return as_json(stub.charges)
        case "POST", "/control/settings":
            stub.set(request.json())
            return as_json(stub.settings)
        case "POST", "/control/reset":
            stub.reset()
            return as_json({"reset": True})
    return as_json({"error": f"there is no {request.method} {request.path}"}, 404)


ENDPOINTS = {
    "": root,
    "shipping": shipping,
    "payment": payment,
    "fraud": fraud,
    "echo": echo,
    "bytes": sized,
    "redirect": redirect,
}


async def serve(host: str, port: int, latency: float) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop.set)
    stub = Stub(latency=latency)
    server = await loop.create_server(lambda: Connection(stub), host, port, backlog=4096)
    # Whoever started us with port 0 waits for this line.
    print(f"services on http://{host}:{server.sockets[0].getsockname()[1]}", flush=True)
    await stop.wait()
    server.close()


def main() -> int:
    parser = argparse.ArgumentParser(description="Shipping, payment and fraud, as a stub.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9300, help="0 picks a free one")
    parser.add_argument("--latency", type=float, default=0.0, metavar="MS", help="for every answer")
    options = parser.parse_args()
    # One descriptor for each connection held; the soft limit is often only 1024.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS refuses "unlimited"
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        asyncio.run(serve(options.host, options.port, options.latency))
    except OSError as error:
        print(f"services: cannot listen on port {options.port}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
