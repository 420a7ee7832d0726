"""One answer on its way to the gateway: its head checked, its body framed.

What is sent is well-formed whatever the application does: headers are checked before
anything leaves, Content-Length is kept to, and a body that did not become whole ends
as a visible cut. Where the bytes come from is the runners' business.
"""

from __future__ import annotations

import logging
import re
from http import HTTPStatus

from layby import _files
from layby._body import LazyBody
from layby._channel import Channel, Closed
from layby._headers import HOP_BY_HOP, MAX_HEADERS
from layby._job import Job, named
from layby._relay import Handover, Relay
from layby._wire import (
    ANSWER,
    BODY,
    FILE_PART,
    FLAG_BROKEN,
    FLAG_FD,
    FLAG_MORE,
    FLAG_READY,
    HEADER,
    MAX_CHUNK,
    READY,
    STOP,
    WireError,
    encode,
)

log = logging.getLogger("layby")

# Up to here one send of joined bytes is cheaper than a send of two parts.
_JOIN_BELOW = 64 << 10

_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_STATUS = re.compile(r"[2-9][0-9][0-9]( .*)?", re.DOTALL)
_NO_BODY = frozenset({HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED})

# What names a file for the gateway, or a server in front, to send in place of the body.
_HAND_OFF = frozenset({"x-sendfile", "x-accel-redirect"})

# What is known of header names, as applications write them: lower case if it matters,
# "" if not. Bounded, because an application may make names up.
_KNOWN_NAMES: dict[str, str] = {}
_MAX_KNOWN_NAMES = 1024


class Answer:
    """An answer: `begin`, then `whole`, or `file`, or `write` and `end`; last of all `ready`."""

    __slots__ = (
        "_bodyless",
        "_channel",
        "_code",
        "_complained",
        "_head",
        "_is_ready",
        "_job",
        "_left",
        "ended",
        "sent",
        "stopped",
    )

    def __init__(self, channel: Channel, job: Job) -> None:
        self._channel = channel
        self._job = job
        self._head: bytes | None = None
        self._code = 0
        # Bytes that Content-Length still promises; None without one.
        self._left: int | None = None
        self._bodyless = False
        self._is_ready = False
        self._complained = False
        # The head has left: it cannot be changed any more.
        self.sent = False
        # The last byte has left, or nothing more may.
        self.ended = False
        # Nobody reads it any more.
        self.stopped = False

    @classmethod
    def of_another(cls, channel: Channel, job: Job) -> Answer:
        """The answer of a request that another server answered: there is only `ready` left."""
        answer = cls(channel, job)
        # Not `job.answered`: what is left to do is a job like any other, and may park.
        answer.sent = answer.ended = True
        return answer

    @property
    def begun(self) -> bool:
        """Whether there is a head."""
        return self._head is not None

    def begin(self, status: str, headers: list[tuple[str, str]]) -> None:
        """Set the head; nothing is sent yet. Raises ValueError or TypeError if it is wrong."""
        # The usual one is worth a comparison: a match costs ten times as much.
        if status != "200 OK" and not (isinstance(status, str) and _STATUS.fullmatch(status)):
            raise ValueError(f"not a status that an answer can have: {status!r}")
        parts = [status[4:]]
        length: int | None = None
        handed_off = False
        for name, value in headers:
            known = _KNOWN_NAMES.get(name)
            if known is None:
                known = _know_name(name)
            if known:
                if known in _HAND_OFF:
                    handed_off = True
                elif known != "content-length":
                    continue
                elif not (value.isascii() and value.isdigit()) or length not in (None, int(value)):
                    raise ValueError(f"not a Content-Length: {value!r}")
                else:
                    length = int(value)
            parts.append(name)
            parts.append(value)
        if len(parts) > 2 * MAX_HEADERS:
            # Of a status, and of pairs, one of which may be added: the length of a file.
            raise ValueError(f"{len(parts) // 2} headers, and {MAX_HEADERS - 1} is the most")
        if handed_off and length is not None:
            # It is that of the file, not of the body that comes along.
            parts = _without_length(parts)
            length = None
        parts.append("")
        try:
            text = "\0".join(parts)
        except TypeError as error:
            raise TypeError(f"header values must be str: {error}") from None
        if "\n" in text or "\r" in text or text.count("\0") != len(parts) - 1:
            raise ValueError("a line break or NUL in the status or in a header")
        self._head = text.encode("latin-1")
        self._code = int(status[:3])
        self._left = length
        self._bodyless = self._code in _NO_BODY or self._job.environ.get("REQUEST_METHOD") == "HEAD"

    def write(self, data: bytes) -> bool:
        """Send a piece of the body. False when no more is wanted."""
        if not isinstance(data, bytes):
            raise TypeError(f"a body is made of bytes, not {type(data).__name__}")
        if self._bodyless or self._job.cancelled:
            self.end()
            return False
        if type(data) is Handover and not self.sent and not data.relay.begun:
            self._relay(data.relay)
            return False
        if not data or self.stopped:
            return not self.stopped
        if self._left is not None:
            if len(data) > self._left:
                self._complain("is longer than its Content-Length: cut there")
                data = data[: self._left]
            if not self.ended:
                self._left -= len(data)
        if self.ended:
            return True
        self._send(data, last=self._left == 0)
        return not self.stopped

    def whole(self, data: bytes, *, ready: bool) -> None:
        """Send all of the body; `ready` when nothing of the request is left to do."""
        if (
            not self.sent
            and len(data) <= MAX_CHUNK
            and (self._left is None or self._left == len(data))
            and not self._bodyless
            and not self._job.cancelled
        ):
            self._left = 0
            self._send(data, last=True, ready=ready)
            return
        self.write(data)
        self.end()
        if ready:
            self.ready()

    def file(self, body: object) -> bool:
        """Have the gateway read the body, if it is a file on disk. False when it must be read.

        That is from the file's position on, as many bytes as Content-Length says; the rest
        of the file without one.
        """
        if self._head is None or self.sent or self._bodyless or self._job.cancelled:
            return False
        part = _files.part_of(body)
        if part is None:
            return False
        length = part.length if self._left is None else self._left
        # A file that says it is empty may have content all the same (those in /proc do),
        # and one shorter than its Content-Length is seen to where it is read.
        if not length or length > part.length:
            return False
        if self._left is None:
            self._head += b"Content-Length\0%d\0" % length
        job = self._job
        frame = encode(
            ANSWER,
            flags=FLAG_FD,
            aux=self._code,
            request=job.request,
            epoch=job.epoch,
            head=self._head,
            body=FILE_PART.pack(part.offset, length),
        )
        self._begin_sending()
        self._channel.send_file(frame, part.descriptor)
        self._is_over()
        return True

    def flush(self) -> None:
        """Send the head now, if there is one, though there is nothing of the body yet."""
        if self._head is not None and not self.sent and not self.ended:
            self._send(b"", last=False)

    def move(self, channel: Channel) -> None:
        """Go on, between two pieces, on the connection of another slot."""
        self._channel = channel

    def _relay(self, relay: Relay) -> None:
        """Have the gateway answer with what it fetches."""
        assert self._head is not None
        parts = self._head.decode("latin-1").split("\0")
        headers = list(zip(parts[1:-1:2], parts[2:-1:2], strict=True))
        job = self._job
        self._begin_sending()
        frame = relay.begin(job, headers)
        try:
            self._channel.send(frame)
        except Closed:
            relay.forget(job)
            raise
        self._is_over()

    def end(self) -> None:
        """The body is over. It is cut, for the client to see, if more was promised."""
        if self.ended:
            return
        if self._job.cancelled:
            self.discard()
        elif self._left and not self._bodyless:
            self._complain(f"is {self._left} bytes shorter than its Content-Length")
            self.cut()
        else:
            self._send(b"", last=True)

    def cut(self) -> None:
        """End the body where it is, as one that is not whole."""
        if self.ended:
            return
        if not self.sent:
            self._send(b"", last=False)
        if not self.ended:
            self._frame(BODY, FLAG_BROKEN, b"")
            self._is_over()

    def discard(self) -> None:
        """Nobody wants it. What has not been sent stays unsent.

        Unless the request was ended by a failure, which its client has to be told.
        """
        if self.sent:
            self.cut()
        elif self._job.failure is not None and not self.ended:
            self._send_failure()
        self._is_over()

    def fail(self) -> None:
        """The application failed: a plain 500 if there is still time for it, else a cut."""
        if self._job.cancelled:
            self.discard()
        elif self.sent:
            self.cut()
        else:
            self._send_failure()

    def _send_failure(self) -> None:
        text = b"Internal Server Error\n"
        headers = [
            ("Content-Type", "text/plain; charset=utf-8"),
            ("Content-Length", str(len(text))),
        ]
        self.begin("500 Internal Server Error", headers)
        self._left = 0
        self._send(b"" if self._bodyless else text, last=True)

    def _is_over(self) -> None:
        self.ended = self._job.answered = True

    def ready(self) -> None:
        """Say that the slot is ready for its next job, unless that was said already."""
        if not self._is_ready:
            self._is_ready = True
            job = self._job
            self._channel.send(encode(READY, request=job.request, epoch=job.epoch))

    def _send(self, data: bytes, *, last: bool, ready: bool = False) -> None:
        """Send the head, if it has not been, and `data` in frames of bounded size."""
        flags = 0 if last else FLAG_MORE
        if ready:
            flags |= FLAG_READY
        if len(data) <= MAX_CHUNK:
            self._send_one(data, flags)
        else:
            view = memoryview(data)
            for start in range(0, len(data), MAX_CHUNK):
                chunk = view[start : start + MAX_CHUNK]
                final = start + MAX_CHUNK >= len(data)
                self._send_one(chunk, flags if final else FLAG_MORE)
                if self.stopped:
                    return
        if not self.stopped:
            self.ended = self._job.answered = last
            self._is_ready = ready

    def _begin_sending(self) -> None:
        self.sent = True
        if isinstance(self._job.body, LazyBody):
            self._job.body.give_up()

    def _send_one(self, data: bytes | memoryview, flags: int) -> None:
        if not self.sent:
            if self._head is None:
                raise RuntimeError("the application sent a body without a head")
            self._begin_sending()
            self._frame(ANSWER, flags, data)
        elif self._nobody_reads():
            self.stopped = True
            self.cut()
        else:
            self._frame(BODY, flags, data)

    def _frame(self, kind: int, flags: int, data: bytes | memoryview) -> None:
        job = self._job
        head = b""
        aux = 0
        if kind == ANSWER:
            assert self._head is not None
            head, aux = self._head, self._code
        header = HEADER.pack(kind, flags, aux, len(head), len(data), job.request, job.epoch)
        if len(data) <= _JOIN_BELOW:
            self._channel.send(b"".join((header, head, data)))
        else:
            self._channel.send_parts(header + head, data)

    def _nobody_reads(self) -> bool:
        while (frame := self._channel.poll()) is not None:
            if frame.type != STOP:
                raise WireError("kind", f"{frame!r} in the middle of an answer")
            # One for an answer that was over before it came is late, and means nothing.
            if (frame.request, frame.epoch) == (self._job.request, self._job.epoch):
                return True
        return False

    def _complain(self, what: str) -> None:
        if not self._complained:
            self._complained = True
            log.warning("the answer to %s %s", named(self._job.environ), what)


def _know_name(name: str) -> str:
    if not isinstance(name, str) or not _TOKEN.fullmatch(name):
        raise ValueError(f"not a header name: {name!r}")
    lower = name.lower()
    known = lower if lower in HOP_BY_HOP | _HAND_OFF or lower == "content-length" else ""
    if lower in HOP_BY_HOP:
        log.info("header %s belongs to the connection and is not passed on", name)
    if len(_KNOWN_NAMES) < _MAX_KNOWN_NAMES:
        _KNOWN_NAMES[name] = known
    return known


def _without_length(parts: list[str]) -> list[str]:
    """The reason and headers, in turns of name and value, without any Content-Length."""
    pairs = zip(parts[1::2], parts[2::2], strict=True)
    kept = [pair for pair in pairs if pair[0].lower() != "content-length"]
    return [parts[0], *(text for pair in kept for text in pair)]
