"""The response of Django that stands for `layby.stream`'s."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from django.http import StreamingHttpResponse


class Streamed(StreamingHttpResponse):
    """Its content goes to the server as it is, unless a middleware put something around it."""

    def __init__(self, status: int, headers: list[tuple[str, str]], parts: Iterator[bytes]) -> None:
        super().__init__(parts, status=status)
        # The origin's, or none.
        del self["Content-Type"]
        for name, value in headers:
            if name.lower() == "set-cookie":
                # Django keeps cookies apart, and one header of a name.
                self.cookies.load(value)
            else:
                self[name] = value
        self._parts = parts

    def __iter__(self) -> Iterator[bytes]:
        content: Any = self._iterator  # type: ignore[attr-defined]
        # Django would turn each part into plain bytes.
        return self._parts if content is self._parts else super().__iter__()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        """Answer as a WSGI application, for one beside Django that uses its ORM, say."""
        cookies = [("Set-Cookie", cookie.OutputString()) for cookie in self.cookies.values()]
        start_response(f"{self.status_code} {self.reason_phrase}", [*self.items(), *cookies])
        return self._parts
