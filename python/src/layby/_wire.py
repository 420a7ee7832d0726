"""The link's frames: bytes to frames and back, without I/O.

docs/protocol.md is the specification; tests/wire/ holds frames that this codec and
the gateway's must agree on. Which frame may come when is decided by those who read
them; that a descriptor really came with an FD frame, by `_channel`.
"""

from __future__ import annotations

import struct
from typing import Any, Final

PREAMBLE: Final = b"LAYBY/1\n"

HEADER: Final = struct.Struct(">BBHIIQI")
# Body of an ANSWER with a file: offset and length of the part that is meant.
FILE_PART: Final = struct.Struct(">QQ")
MAX_HEAD: Final = 4 << 20
# Largest body of an ANSWER, BODY, RESUME or RESULTS.
MAX_CHUNK: Final = 256 << 10
# Largest body of a REQUEST.
MAX_REQUEST: Final = 64 << 10

HELLO: Final = 0x01
SLOT: Final = 0x02
WELCOME: Final = 0x03
REFUSED: Final = 0x04
GRANT: Final = 0x05
DRAIN: Final = 0x06
BYE: Final = 0x07
WANT: Final = 0x08
CALL: Final = 0x09
STACK: Final = 0x0A
PING: Final = 0x0B
PONG: Final = 0x0C
TOLD: Final = 0x0D
REQUEST: Final = 0x10
RESUME: Final = 0x11
CANCEL: Final = 0x12
RESULTS: Final = 0x13
RETIRE: Final = 0x14
STOP: Final = 0x15
RUN: Final = 0x16
ANSWER: Final = 0x20
BODY: Final = 0x21
PARK: Final = 0x22
HOLD: Final = 0x23
READY: Final = 0x24
RETIRED: Final = 0x25
RELAY: Final = 0x26

NAMES: Final = {
    number: name
    for name, number in list(globals().items())
    if name.isupper() and type(number) is int and not name.startswith("MAX_")
}

# Flags. FD: the body is a file, whose descriptor comes with the frame.
FLAG_FD: Final = 0x01
# The body goes on in another frame.
FLAG_MORE: Final = 0x02
# The slot is ready for its next job.
FLAG_READY: Final = 0x04
# The body ends here and is not whole.
FLAG_BROKEN: Final = 0x08
# A client that leaves must not cancel this request now.
FLAG_SHIELDED: Final = 0x10
# Only this slot can take the request's next job.
FLAG_PINNED: Final = 0x20
# The request waits for something in its own process.
FLAG_LOCAL: Final = 0x40
# The request's body is not here yet; or: it waits for that.
FLAG_LAZY: Final = 0x80

# The flags that may stand on a frame of this type; none on the others.
_FLAGS: Final = {
    REQUEST: FLAG_FD | FLAG_LAZY,
    RESUME: FLAG_FD,
    RESULTS: FLAG_FD,
    ANSWER: FLAG_FD | FLAG_MORE | FLAG_READY,
    BODY: FLAG_MORE | FLAG_READY | FLAG_BROKEN,
    PARK: FLAG_SHIELDED | FLAG_PINNED | FLAG_LOCAL | FLAG_LAZY,
    HOLD: FLAG_SHIELDED | FLAG_LOCAL | FLAG_LAZY,
    RELAY: FLAG_READY,
}
# Largest body by type; the others have none. PARK, HOLD and RELAY depend on the gateway.
_MAX_BODY: Final = {
    REQUEST: MAX_REQUEST,
    RESUME: MAX_CHUNK,
    RESULTS: MAX_CHUNK,
    ANSWER: MAX_CHUNK,
    BODY: MAX_CHUNK,
}


class WireError(Exception):
    """What the peer sent is not this protocol.

    `kind` is one of preamble, kind, flags, head, body, pairs: the words of tests/wire.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Frame:
    """One frame. `body` is empty when it comes as a file."""

    __slots__ = ("aux", "body", "epoch", "flags", "head", "request", "type")

    def __init__(
        self,
        type: int,
        flags: int,
        aux: int,
        request: int,
        epoch: int,
        head: bytes,
        body: bytes,
    ) -> None:
        self.type = type
        self.flags = flags
        self.aux = aux
        self.request = request
        self.epoch = epoch
        self.head = head
        self.body = body

    def __repr__(self) -> str:
        return f"<{NAMES[self.type]} {self.request}/{self.epoch} aux {self.aux} flags {self.flags}>"


def encode(
    type: int,
    *,
    flags: int = 0,
    aux: int = 0,
    request: int = 0,
    epoch: int = 0,
    head: bytes = b"",
    body: bytes = b"",
) -> bytes:
    """One frame as bytes. A large body is cheaper sent beside `encode_header`."""
    header = HEADER.pack(type, flags, aux, len(head), len(body), request, epoch)
    return b"".join((header, head, body))


class Decoder:
    """Bytes in, frames out. After a `WireError` it is of no use any more."""

    def __init__(self, *, preamble: bool = False, max_plan: int = 0) -> None:
        self._buffer = bytearray()
        self._preamble = preamble
        self._max_body = {**_MAX_BODY, PARK: max_plan, HOLD: max_plan, RELAY: max_plan}

    @property
    def empty(self) -> bool:
        """Whether all that was received has been handed out."""
        return not self._buffer

    def receive(self, data: bytes) -> Frame | None:
        """Take `data` and hand out the next frame, if it is whole.

        More than one may be whole: call again with no data until None comes.
        """
        buffer: bytes | bytearray = data
        if self._buffer or self._preamble:
            self._buffer += data
            buffer = self._buffer
            if self._preamble and not self._take_preamble():
                return None
        if len(buffer) < 24:
            self._keep(buffer)
            return None
        type, flags, aux, head_length, body_length, request, epoch = HEADER.unpack_from(buffer)
        if type not in NAMES:
            raise WireError("kind", f"unknown frame type {type:#04x}")
        if flags & ~_FLAGS.get(type, 0):
            raise WireError("flags", f"flags {flags:#04x} on a {NAMES[type]} frame")
        if head_length > MAX_HEAD:
            raise WireError("head", f"{NAMES[type]} frame with a head of {head_length} bytes")
        if body_length > self._max_body.get(type, 0) or (
            flags & FLAG_FD and body_length and type != ANSWER
        ):
            raise WireError("body", f"{NAMES[type]} frame with a body of {body_length} bytes")
        middle = 24 + head_length
        end = middle + body_length
        if len(buffer) < end:
            self._keep(buffer)
            return None
        frame = Frame(
            type, flags, aux, request, epoch, bytes(buffer[24:middle]), bytes(buffer[middle:end])
        )
        if buffer is self._buffer:
            del self._buffer[:end]
        elif len(buffer) > end:
            self._buffer += buffer[end:]
        return frame

    def _keep(self, buffer: bytes | bytearray) -> None:
        if buffer is not self._buffer:
            self._buffer += buffer

    def _take_preamble(self) -> bool:
        if len(self._buffer) < len(PREAMBLE):
            return False
        if not self._buffer.startswith(PREAMBLE):
            start = bytes(self._buffer[: len(PREAMBLE)])
            raise WireError("preamble", f"not this version of the link protocol: {start!r}")
        del self._buffer[: len(PREAMBLE)]
        self._preamble = False
        return True


def fill_environ(environ: dict[str, Any], head: bytes, pairs: int) -> None:
    """Put the pairs of a REQUEST's head into `environ`.

    Their number is checked against the frame's: a NUL that slipped into a value would
    otherwise shift names and values, and let a client set any variable.
    """
    parts = head.decode("latin-1").split("\0")
    if len(parts) != 2 * pairs + 1 or parts[-1]:
        raise WireError("pairs", f"a head of {len(parts) - 1} strings for {pairs} pairs")
    parts_left = iter(parts)
    # The last part is the empty one after the last NUL: zip drops it.
    environ.update(zip(parts_left, parts_left, strict=False))
