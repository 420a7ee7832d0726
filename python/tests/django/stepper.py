"""Real slots in this process, with the test as their gateway.

Deterministic where a gateway is not: parked jobs resume once every running job has
parked or ended, and each on another slot than the one that parked it. That makes the
most of whatever a request could leave behind on its thread. What a request waits for in
its own process goes on as soon as it can, also on another slot.
"""

from __future__ import annotations

import array
import os
import selectors
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

sys.path.append(str(Path(__file__).parents[1] / "core"))

from fakegateway import FD, HEADER, LOCAL, READY, TYPES, Connection, Frame

from layby._channel import Channel
from layby._coroutine import CoroutineRunner
from layby._exceptions import Cancelled
from layby._locals import ThreadLocals
from layby._slot import Slot, Welcome
from layby._worker import Voice

_WELCOME = Welcome(process=1, key="k", max_plan=1 << 20, thread_locals=())
_PATIENCE = 60.0


class Answer:
    """What a client would see of one request, and how it got there."""

    def __init__(self) -> None:
        self.status = ""
        self.headers: list[tuple[str, str]] = []
        self.body = b""
        self.chunks: list[bytes] = []
        # Sent with the slot free at once.
        self.quick_close = False
        self.error: BaseException | None = None
        # Slot of every step, reason of every wait in place; slots of what ran beside it.
        self.slots: list[int] = []
        self.waits: list[str] = []
        self.calls: list[int] = []

    def __repr__(self) -> str:
        return f"<Answer {self.status!r} slots {self.slots} waits {self.waits} {self.body[:80]!r}>"

    @property
    def code(self) -> int:
        if self.error is not None:
            raise self.error
        return int(self.status.split()[0])

    @property
    def text(self) -> str:
        return self.body.decode()

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)

    @property
    def cookies(self) -> dict[str, str]:
        sent = (value.split(";")[0] for name, value in self.headers if name == "Set-Cookie")
        return {name: value for name, _, value in (pair.partition("=") for pair in sent)}

    def take(self, frame: Frame, body: bytes) -> None:
        """A frame of it; `body` is a file's when it came as one."""
        if frame.type == "ANSWER":
            reason = frame.head.decode("latin-1").split("\0")[0]
            self.status, self.headers = f"{frame.aux} {reason}", frame.headers
            self.quick_close = bool(frame.flags & READY)
        if body:
            self.chunks.append(body)
            self.body += body


class _Request:
    def __init__(self, number: int, cancel: bool) -> None:
        self.number = number
        self.epoch = 0
        self.answer = Answer()
        self.cancel = cancel
        # What it parked with; for a LOCAL park whether it wants to go on already.
        self.plan: Any = None
        self.local = False
        self.wants: int | None = None


class _Peer:
    """The gateway's end of one slot."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        # What is to be sent once the slot is idle.
        self.jobs: deque[Callable[[], None]] = deque()
        self.idle = True
        # It runs a call beside a request, not the request itself.
        self.beside = False

    def read(self) -> tuple[Frame, bytes]:
        """The next frame, and its body, wherever that is."""
        sock = self.connection.socket
        data, ancillary, _, _ = sock.recvmsg(HEADER.size, socket.CMSG_SPACE(4))
        assert data, "the slot ended"
        data += self.connection._exactly(HEADER.size - len(data))
        kind, flags, aux, head, length, request, epoch = HEADER.unpack(data)
        exactly = self.connection._exactly
        frame = Frame(TYPES[kind], flags, aux, request, epoch, exactly(head), exactly(length))
        if kind != 0x20 or not flags & FD:
            return frame, frame.body
        [descriptor] = array.array("i", ancillary[0][2])
        offset, size = (int.from_bytes(frame.body[at : at + 8], "big") for at in (0, 8))
        try:
            return frame, os.pread(descriptor, size, offset)
        finally:
            os.close(descriptor)


class Slots:
    """`count` slots that run the requests given to `run`."""

    def __init__(self, app: Any, count: int) -> None:
        self._runner = CoroutineRunner(app, ThreadLocals.from_environment(()))
        self._count = count
        self._peers: list[_Peer] = []
        self._threads: list[threading.Thread] = []
        self._requests = 0
        # Those under way, by number.
        self._live: dict[int, _Request] = {}
        self._selector = selectors.DefaultSelector()

    def __enter__(self) -> Slots:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._control, self._process = Connection(ours, preamble=False), Channel(theirs)
        self._selector.register(ours, selectors.EVENT_READ)
        for number in range(self._count):
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            slot = Slot(
                number,
                channel=Channel(theirs),
                welcome=_WELCOME,
                runner=self._runner,
                parking=self._runner,
                process=Voice(self._process),
            )
            thread = threading.Thread(target=slot.run, name=f"slot-{number}")
            thread.start()
            self._threads.append(thread)
            peer = _Peer(Connection(ours, preamble=False))
            peer.connection.expect("SLOT")
            self._peers.append(peer)
            self._selector.register(ours, selectors.EVENT_READ, number)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for peer in self._peers:
            peer.connection.close()
        for thread in self._threads:
            thread.join()
        self._selector.close()
        self._control.close()
        self._process.close()

    def run(self, *environs: dict[str, Any], cancel: bool = False) -> list[Answer]:
        """Run all of them at once; with `cancel`, each loses its client while parked."""
        requests = []
        for number, environ in enumerate(environs):
            self._requests += 1
            request = _Request(self._requests, cancel)
            self._live[request.number] = request
            requests.append(request)
            self._give(number % self._count, self._begin, request, environ)
        while self._live or not all(peer.idle for peer in self._peers):
            self._resume_if_all_wait()
            ready = self._selector.select(_PATIENCE)
            if not ready:
                raise TimeoutError("a step takes longer than a minute")
            for key, _ in ready:
                if key.data is None:
                    self._on_control(self._control.frame())
                else:
                    self._on_slot(key.data, *self._peers[key.data].read())
        return [request.answer for request in requests]

    def get(self, path: str, **kwargs: Any) -> Answer:
        """One GET."""
        cancel = kwargs.pop("cancel", False)
        return self.run(environ(path, **kwargs), cancel=cancel)[0]

    def _give(self, number: int, send: Callable[..., None], *args: Any) -> None:
        peer = self._peers[number]
        peer.jobs.append(lambda: send(number, peer.connection, *args))
        self._feed(peer)

    def _feed(self, peer: _Peer) -> None:
        if peer.idle and peer.jobs:
            peer.idle = False
            peer.jobs.popleft()()

    def _begin(
        self, slot: int, connection: Connection, request: _Request, environ: dict[str, Any]
    ) -> None:
        request.answer.slots.append(slot)
        pairs = {name: value for name, value in environ.items() if isinstance(value, str)}
        head = "".join(f"{name}\0{value}\0" for name, value in pairs.items()).encode("latin-1")
        body = environ["wsgi.input"].read()
        connection.send(
            "REQUEST", aux=len(pairs), head=head, body=body, request=request.number
        )  # fmt: skip

    def _go_on(self, slot: int, connection: Connection, request: _Request) -> None:
        request.answer.slots.append(slot)
        request.epoch += 1
        plan, request.plan, request.local = request.plan, None, False
        if request.cancel:
            request.cancel = False
            connection.send("CANCEL", request=request.number, epoch=request.epoch)
        elif plan is None:
            connection.send("RESUME", request=request.number, epoch=request.epoch)
        else:
            connection.results("RESUME", request.number, request.epoch, *_slept(plan))

    def _resume_if_all_wait(self) -> None:
        busy = any(not peer.idle or peer.jobs for peer in self._peers)
        if busy or any(request.local for request in self._live.values()):
            return
        for request in list(self._live.values()):
            self._move_on(request)

    def _move_on(self, request: _Request) -> None:
        self._give((request.answer.slots[-1] + 1) % self._count, self._go_on, request)

    def _on_slot(self, number: int, frame: Frame, body: bytes) -> None:
        peer = self._peers[number]
        if peer.beside and frame.type == "READY":
            # Its request may be over by now.
            peer.idle, peer.beside = True, False
            self._feed(peer)
            return
        request = self._live[frame.request]
        if frame.type == "HOLD":
            request.answer.waits.append(frame.plan["hold"]["reason"])
            if not frame.flags & LOCAL:
                results = _slept(frame.plan)
                peer.connection.results("RESULTS", frame.request, frame.epoch, *results)
            return
        if frame.type == "PARK":
            request.local = bool(frame.flags & LOCAL)
            request.plan = None if request.local else frame.plan
            if request.local and request.wants == frame.epoch:
                self._move_on(request)
        elif frame.type in ("ANSWER", "BODY"):
            request.answer.take(frame, body)
        over = frame.type == "READY" or bool(frame.flags & READY and frame.type != "PARK")
        if over:
            del self._live[frame.request]
            if not request.answer.status:
                request.answer.error = Cancelled()
        if over or frame.type == "PARK":
            peer.idle = True
            self._feed(peer)

    def _on_control(self, frame: Frame) -> None:
        request = self._live[frame.request]
        if frame.type == "WANT":
            # It may be read before the PARK that it follows.
            request.wants = frame.epoch
            if request.local and request.epoch == frame.epoch:
                self._move_on(request)
            return
        assert frame.type == "CALL", frame
        slot = (request.answer.slots[-1] + 1 + len(request.answer.calls)) % self._count
        request.answer.calls.append(slot)
        self._give(slot, self._run_call, frame)

    def _run_call(self, slot: int, connection: Connection, call: Frame) -> None:
        self._peers[slot].beside = True
        connection.send("RUN", request=call.request, epoch=call.epoch, aux=call.aux)


def _slept(plan: Any) -> list[Any]:
    """The results of a plan of sleeps; nobody waits for them."""
    return [
        {"results": _slept(thing)} if "gather" in thing else {"slept": thing["sleep"]}
        for thing in plan["gather"]
    ]


def environ(
    path: str,
    *,
    post: dict[str, str] | None = None,
    cookies: dict[str, str] | None = None,
    headers: dict[str, str] | None = None,
) -> dict[str, Any]:
    """The environ of a GET, or of a POST of a form."""
    path, _, query = path.partition("?")
    body = urlencode(post or {}).encode()
    result = {
        "REQUEST_METHOD": "GET" if post is None else "POST",
        "SCRIPT_NAME": "",
        "PATH_INFO": path,
        "QUERY_STRING": query,
        "SERVER_NAME": "testserver",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "127.0.0.1",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": BytesIO(body),
        "wsgi.errors": BytesIO(),
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
    }
    if post is not None:
        result["CONTENT_TYPE"] = "application/x-www-form-urlencoded"
        result["CONTENT_LENGTH"] = str(len(body))
    if cookies:
        result["HTTP_COOKIE"] = "; ".join(f"{name}={value}" for name, value in cookies.items())
    for name, value in (headers or {}).items():
        result["HTTP_" + name.upper().replace("-", "_")] = value
    return result
