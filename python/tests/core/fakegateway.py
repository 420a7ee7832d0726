"""The gateway's end of the link, for tests: frames by struct, nothing of layby's codec."""

from __future__ import annotations

import array
import json
import os
import socket
import struct
import tempfile
from typing import Any, NamedTuple

HEADER = struct.Struct(">BBHIIQI")
TYPES = {
    0x01: "HELLO", 0x02: "SLOT", 0x03: "WELCOME", 0x04: "REFUSED", 0x05: "GRANT", 0x06: "DRAIN",
    0x07: "BYE", 0x08: "WANT", 0x09: "CALL", 0x0A: "STACK", 0x0B: "PING", 0x0C: "PONG",
    0x0D: "TOLD",
    0x10: "REQUEST", 0x11: "RESUME", 0x12: "CANCEL", 0x13: "RESULTS", 0x14: "RETIRE", 0x15: "STOP",
    0x16: "RUN", 0x20: "ANSWER", 0x21: "BODY", 0x22: "PARK", 0x23: "HOLD", 0x24: "READY",
    0x25: "RETIRED", 0x26: "RELAY",
}  # fmt: skip
NUMBERS = {name: number for number, name in TYPES.items()}
FD, MORE, READY, BROKEN, SHIELDED, PINNED, LOCAL, LAZY = 1, 2, 4, 8, 16, 32, 64, 128
PATIENCE = 20.0

OK_RESPONSE = {
    "status": 200,
    "reason": "OK",
    "url": "http://origin.example/",
    "headers": [["Content-Type", "text/plain"]],
    "body": [0, 0],
    "seconds": 0.1,
    "redirects": 0,
}


class Frame(NamedTuple):
    type: str
    flags: int
    aux: int
    request: int
    epoch: int
    head: bytes
    body: bytes

    @property
    def plan(self) -> Any:
        return json.loads(self.head)

    @property
    def headers(self) -> list[tuple[str, str]]:
        parts = self.head.decode("latin-1").split("\0")
        assert parts[-1] == ""
        return list(zip(parts[1:-1:2], parts[2:-1:2], strict=True))


class Connection:
    """One connection that a worker made."""

    def __init__(self, sock: socket.socket, *, preamble: bool = True) -> None:
        self.socket = sock
        sock.settimeout(PATIENCE)
        if preamble:
            assert self._exactly(8) == b"LAYBY/1\n"

    def frame(self) -> Frame:
        kind, flags, aux, head, body, request, epoch = HEADER.unpack(self._exactly(24))
        return Frame(
            TYPES[kind], flags, aux, request, epoch, self._exactly(head), self._exactly(body)
        )

    def expect(self, kind: str) -> Frame:
        frame = self.frame()
        assert frame.type == kind, frame
        return frame

    def closed(self) -> bool:
        """Whether the worker closes, with nothing more to say."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True

    def quiet(self, seconds: float = 0.2) -> bool:
        """Whether the worker says nothing for a while."""
        self.socket.settimeout(seconds)
        try:
            return not self.socket.recv(1, socket.MSG_PEEK)
        except TimeoutError:
            return True
        finally:
            self.socket.settimeout(PATIENCE)

    def send(
        self,
        kind: str,
        *,
        flags: int = 0,
        aux: int = 0,
        head: bytes = b"",
        body: bytes = b"",
        request: int = 0,
        epoch: int = 0,
        file: bytes | None = None,
        flagged: bool = True,
        glued: bytes = b"",
    ) -> None:
        """Send a frame; `file` goes as a descriptor, `glued` right before it in one write."""
        if file is not None and flagged:
            flags |= FD
        header = HEADER.pack(NUMBERS[kind], flags, aux, len(head), len(body), request, epoch)
        data = glued + header + head + body
        if file is None:
            self.socket.sendall(data)
            return
        with tempfile.TemporaryFile() as spool:
            spool.write(file)
            spool.flush()
            # Offset 0, as the protocol says: the descriptor shares it with us.
            os.lseek(spool.fileno(), 0, os.SEEK_SET)
            rights = array.array("i", [spool.fileno()])
            sent = self.socket.sendmsg(
                [data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights.tobytes())]
            )
            if sent < len(data):
                self.socket.sendall(data[sent:])

    def request(
        self, request: int, path: str = "/", *, body: bytes = b"", file: bytes | None = None,
        glued: bytes = b"", flags: int = 0, **environ: str,
    ) -> None:  # fmt: skip
        pairs = {
            "REQUEST_METHOD": "GET",
            "SCRIPT_NAME": "",
            "PATH_INFO": path,
            "QUERY_STRING": "",
            "SERVER_NAME": "shop.example",
            "SERVER_PORT": "80",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "wsgi.url_scheme": "http",
        }
        if body or file:
            pairs["REQUEST_METHOD"] = "POST"
            pairs["CONTENT_LENGTH"] = str(len(body or file or b""))
        pairs.update(environ)
        head = "".join(f"{name}\0{value}\0" for name, value in pairs.items()).encode("latin-1")
        self.send(
            "REQUEST", aux=len(pairs), head=head, body=body, request=request, file=file,
            glued=glued, flags=flags,
        )  # fmt: skip

    def results(
        self,
        kind: str,
        request: int,
        epoch: int,
        *entries: Any,
        body: bytes = b"",
        file: bytes | None = None,
    ) -> None:
        head = json.dumps({"results": entries}).encode()
        self.send(kind, request=request, epoch=epoch, head=head, body=body, file=file)

    def answer(self, *, ready: bool = True) -> tuple[Frame, bytes]:
        """A whole answer; with `ready`, also up to where the slot is free again."""
        first = frame = self.expect("ANSWER")
        body = frame.body
        while frame.flags & MORE:
            frame = self.expect("BODY")
            assert not frame.flags & BROKEN, "the body was cut"
            body += frame.body
        if ready and not frame.flags & READY:
            self.expect("READY")
        return first, body

    def file_answer(self) -> tuple[Frame, int, int, int]:
        """An answer whose body is a part of a file: descriptor, offset and length."""
        data, ancillary, _, _ = self.socket.recvmsg(24, socket.CMSG_SPACE(4))
        kind, flags, aux, head, body, request, epoch = HEADER.unpack(data)
        assert (TYPES[kind], flags & FD, flags & MORE, body) == ("ANSWER", FD, 0, 16)
        [(_, _, rights)] = ancillary
        [descriptor] = array.array("i", rights)
        frame = Frame(
            "ANSWER", flags, aux, request, epoch, self._exactly(head), self._exactly(body)
        )
        offset, length = struct.unpack(">QQ", frame.body)
        if not flags & READY:
            self.expect("READY")
        return frame, descriptor, offset, length

    def close(self) -> None:
        self.socket.close()

    def _exactly(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            more = self.socket.recv(length - len(data))
            if not more:
                raise EOFError(f"closed after {data!r}")
            data += more
        return data


def response(body: bytes = b"", *, at: int = 0, **changes: Any) -> dict[str, Any]:
    """A response in the results; its bytes are at offset `at` of the frame's body."""
    return {**OK_RESPONSE, "body": [at, len(body)], **changes}


class Link:
    """A link socket that a worker process can join."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._accepted: list[Connection] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.bind(path)
        self._socket.listen(64)
        self._socket.settimeout(PATIENCE)

    def accept(self) -> Connection:
        self._accepted.append(Connection(self._socket.accept()[0]))
        return self._accepted[-1]

    def welcome(self, *, thread_locals: list[str] | None = None) -> tuple[Connection, Any]:
        """Welcome the worker that joins; its control connection and what it said."""
        control = self.accept()
        hello = json.loads(control.expect("HELLO").head)
        welcome = {
            "process": 1,
            "key": "k",
            "max_plan": 1 << 20,
            "timeout": 30.0,
            "thread_locals": thread_locals or [],
        }
        control.send("WELCOME", head=json.dumps(welcome).encode())
        return control, hello

    def grant(self, control: Connection, number: int) -> Connection:
        control.send("GRANT", aux=number)
        slot = self.accept()
        opening = slot.expect("SLOT")
        assert (opening.aux, json.loads(opening.head)) == (number, {"process": 1, "key": "k"})
        return slot

    def close(self) -> None:
        self._socket.close()
        for connection in self._accepted:
            connection.close()
