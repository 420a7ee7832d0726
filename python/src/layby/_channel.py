"""One connection of the link: frames over a blocking Unix socket.

Used by one thread at a time; only `shut` may be called from another. Descriptors
that come with frames become files here, so none is lost or left open.
"""

from __future__ import annotations

import array
import os
import socket
from collections import deque
from typing import BinaryIO

from layby import _wire
from layby._wire import FLAG_FD, Frame, WireError

# One recv of more than 64 KiB makes the allocator map and unmap memory every time:
# 262144 measured 12 us slower per call.
_RECEIVE = 65536
_ANCILLARY = socket.CMSG_SPACE(array.array("i").itemsize)
_RECEIVE_FLAGS = getattr(socket, "MSG_CMSG_CLOEXEC", 0)


class Closed(Exception):
    """The peer closed the connection, or is gone."""


class Channel:
    """A connection to the gateway, with its preamble sent."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._decoder = _wire.Decoder()
        self._descriptors: deque[int] = deque()

    @classmethod
    def connect(cls, path: str) -> Channel:
        """Connect to the link at `path`; OSError when nobody listens there."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(path)
            sock.sendall(_wire.PREAMBLE)
        except BaseException:
            sock.close()
            raise
        return cls(sock)

    def fileno(self) -> int:
        """The connection's descriptor, to wait on; frames may be buffered here before it."""
        return self._socket.fileno()

    def receive(self) -> tuple[Frame, BinaryIO | None]:
        """The next frame, and its body when that came as a file.

        Raises `Closed` at the end of the connection and `WireError` for nonsense.
        """
        frame = self._decoder.receive(b"") if not self._decoder.empty else None
        while frame is None:
            frame = self._decoder.receive(self._receive_bytes(_RECEIVE_FLAGS))
        return frame, self._file_of(frame)

    def poll(self) -> Frame | None:
        """The next frame if it is here already. Only for moments when no file may come."""
        frame = self._decoder.receive(b"") if not self._decoder.empty else None
        while frame is None:
            try:
                data = self._receive_bytes(_RECEIVE_FLAGS | socket.MSG_DONTWAIT)
            except BlockingIOError:
                return None
            frame = self._decoder.receive(data)
        if frame.flags & FLAG_FD or self._descriptors:
            raise WireError("flags", f"a descriptor with a {frame!r} that may have none")
        return frame

    def send(self, frame: bytes) -> None:
        """Send bytes of frames; `Closed` when the peer is gone."""
        try:
            self._socket.sendall(frame)
        except OSError as error:
            raise Closed from error

    def send_parts(self, first: bytes, second: bytes | memoryview) -> None:
        """Send two pieces of bytes after each other, without joining them in memory."""
        try:
            sent = self._socket.sendmsg((first, second))
            if sent < len(first):
                self._socket.sendall(first[sent:])
                sent = len(first)
            if sent < len(first) + len(second):
                self._socket.sendall(memoryview(second)[sent - len(first) :])
        except OSError as error:
            raise Closed from error

    def send_file(self, frame: bytes, descriptor: int) -> None:
        """Send a frame with a descriptor, which may be closed once this returns."""
        rights = array.array("i", [descriptor]).tobytes()
        try:
            sent = self._socket.sendmsg((frame,), ((socket.SOL_SOCKET, socket.SCM_RIGHTS, rights),))
            if sent < len(frame):
                self._socket.sendall(frame[sent:])
        except OSError as error:
            raise Closed from error

    def shut(self) -> None:
        """End the connection under its thread, which then finds it closed."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # It has ended already, which is what was wanted.

    def disown(self) -> None:
        """In a forked child: let go of the connection, which is its parent's.

        Its descriptor stays open. Should the parent die, the gateway sees by it that copies
        of the parent's connections are left, those to the database too, and waits for their end.
        """
        self._socket.detach()
        self.close()

    def close(self) -> None:
        """Close the connection and what came with it."""
        self._socket.close()
        while self._descriptors:
            os.close(self._descriptors.popleft())

    def _receive_bytes(self, flags: int) -> bytes:
        try:
            data, ancillary, message_flags, _ = self._socket.recvmsg(_RECEIVE, _ANCILLARY, flags)
        except BlockingIOError:
            raise
        except OSError as error:
            raise Closed from error
        if ancillary:
            for level, kind, payload in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    descriptors = array.array("i")
                    descriptors.frombytes(payload)
                    self._descriptors.extend(descriptors)
        if message_flags & socket.MSG_CTRUNC:
            raise WireError("flags", "more descriptors than a frame may have")
        if not data:
            raise Closed
        return data

    def _file_of(self, frame: Frame) -> BinaryIO | None:
        if frame.flags & FLAG_FD:
            if not self._descriptors:
                raise WireError("flags", f"no descriptor came with {frame!r}")
            return os.fdopen(self._descriptors.popleft(), "rb")
        if self._descriptors and self._decoder.empty:
            raise WireError("flags", f"a descriptor came with {frame!r}, which has no flag for it")
        return None
