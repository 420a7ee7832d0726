"""Bodies that come later than their request (`[[route]] body = "lazy"`).

The application starts at the headers, and asks for the body if it wants it. Here is
decided what `wsgi.input` is until then: something that reads like any other, but has the
request wait for the body first. A coroutine waits with `body_ready`, and so parks;
whoever just reads waits in place.
"""

from __future__ import annotations

import asyncio
import io
import json as jsonlib
import os
from collections.abc import Coroutine, Generator, Mapping
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar

from layby import _source
from layby._exceptions import BodyNotReady, Cancelled
from layby._job import Suspend, tls
from layby._wire import FLAG_LAZY, Frame, WireError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


class LazyBody(io.BufferedIOBase):
    """`wsgi.input` of a request whose body is not here yet; reading waits for it."""

    def __init__(self, environ: dict[str, Any]) -> None:
        self._environ = environ
        self._content: BinaryIO | None = None
        self._given_up = False

    def __repr__(self) -> str:
        return f"<LazyBody {'here' if self.here else 'not here yet'}>"

    @property
    def here(self) -> bool:
        """Whether the body is in."""
        return self._content is not None

    def fill(self, content: BinaryIO, length: int) -> None:
        """The body is in."""
        self._content = content
        # What it was announced to be, if it was; an application may believe it from here on.
        self._environ["CONTENT_LENGTH"] = str(length)

    def give_up(self) -> None:
        """The answer has begun: from here on nobody can ask for the body."""
        self._given_up = True

    def wait(self) -> None:
        """Have the body here, waiting for it on this thread.

        Raises `Cancelled` when it cannot be had, and `BodyNotReady` where there is no
        way to wait for it.
        """
        # Here and not above: what drives coroutines is built on what they wait for.
        from layby._drive import wait

        if self._content is None:
            wait(self._ask())

    def __await__(self) -> Generator[Suspend, None, None]:
        """Have the body here; a coroutine in a slot parks for it."""
        if self._content is not None:
            return
        if tls.job is None or asyncio._get_running_loop() is not None:
            self.wait()
        else:
            yield self._ask()

    def _ask(self) -> BodyWait:
        job = tls.job
        if job is not None and job.cancelled:
            raise Cancelled("the request is being ended: its body will not come")
        if job is None or job.body is not self:
            raise BodyNotReady(
                "only the request itself can wait for its body: not another thread, nor code"
                " inside `async with layby.io` or `layby.parallel()`"
            )
        if self._given_up:
            raise BodyNotReady("the body can only be asked for before the answer begins")
        return BodyWait(self, _source.application_line())

    # A file's methods.

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        return self._here().read(-1 if size is None else size)

    def read1(self, size: int = -1, /) -> bytes:
        return self.read(size)

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    def readline(self, size: int | None = -1, /) -> bytes:
        return self._here().readline(-1 if size is None else size)

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        return self._here().seek(offset, whence)

    def tell(self) -> int:
        return 0 if self._content is None else self._content.tell()

    def fileno(self) -> int:
        """Its descriptor, once it is here and if it came as a file."""
        if self._content is None:
            raise io.UnsupportedOperation("fileno")
        return self._content.fileno()

    def close(self) -> None:
        if self._content is not None:
            self._content.close()
        super().close()

    def _here(self) -> BinaryIO:
        if self.closed:
            raise ValueError("read of a closed body")
        self.wait()
        assert self._content is not None
        return self._content


class BodyWait(Suspend):
    """Waits for the body of the request."""

    __slots__ = ("_body",)

    flags: ClassVar[int] = FLAG_LAZY

    def __init__(self, body: LazyBody, source: str) -> None:
        super().__init__(source)
        self._body = body

    def encode(self, *, limit: int, hold: Mapping[str, str] | None = None) -> tuple[bytes, bytes]:
        """Nothing, but where it is waited for in place."""
        head = b"" if hold is None else jsonlib.dumps({"hold": hold}).encode("ascii")
        return head, b""

    def decode(self, frame: Frame, file: BinaryIO | None) -> None:
        """Put the body where it is read. WireError if it is not as long as announced."""
        body = self._body
        length = len(frame.body) if file is None else os.fstat(file.fileno()).st_size
        announced = body._environ.get("CONTENT_LENGTH")
        if body.here or (announced is not None and length != int(announced or 0)):
            if file is not None:
                file.close()
            raise WireError("body", f"{frame!r} with a body of {length} bytes, not {announced}")
        body.fill(io.BytesIO(frame.body) if file is None else file, length)

    def outside(self, stepped: Coroutine[Any, Any, Any] | None) -> None:
        """There is nobody to ask for it."""
        raise BodyNotReady("there is no gateway to have it from")


def body_of(request: Any) -> LazyBody | None:
    """The lazy body of a framework's request, or of an environ; None if it is not lazy."""
    # Wrappers, such as those of Django REST framework, have the request inside.
    request = getattr(request, "_request", request)
    environ = request if isinstance(request, dict) else getattr(request, "environ", None)
    body = environ.get("wsgi.input") if isinstance(environ, dict) else None
    return body if isinstance(body, LazyBody) else None
