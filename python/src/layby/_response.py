"""What a fetch brings back, with httpx's attribute names.

A `Response` is whole and in memory; nothing of it is read later.
"""

from __future__ import annotations

import codecs
import json
import zlib
from collections.abc import Iterator, Mapping
from datetime import timedelta
from email.message import Message
from typing import Any

from layby._exceptions import StatusError, TooLarge
from layby._urls import masked

# What a coded body may decode to: a few kilobytes can hold gigabytes of zeros.
_MAX_DECODED = 64 << 20


class Headers(Mapping[str, str]):
    """Headers of a response: names in any case, repeated ones joined with ", "."""

    __slots__ = ("_joined", "_pairs")

    def __init__(self, pairs: list[tuple[str, str]]) -> None:
        self._pairs = pairs
        joined: dict[str, str] = {}
        for name, value in pairs:
            key = name.lower()
            joined[key] = f"{joined[key]}, {value}" if key in joined else value
        self._joined = joined

    def __getitem__(self, name: str) -> str:
        return self._joined[name.lower()]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.lower() in self._joined

    def __iter__(self) -> Iterator[str]:
        return iter(self._joined)

    def __len__(self) -> int:
        return len(self._joined)

    def __repr__(self) -> str:
        return f"Headers({self.multi_items()!r})"

    def get_list(self, name: str) -> list[str]:
        """The values of every header of this name, in order; set-cookie needs it."""
        key = name.lower()
        return [value for other, value in self._pairs if other.lower() == key]

    def multi_items(self) -> list[tuple[str, str]]:
        """All headers in order, names in lower case, repeated ones apart."""
        return [(name.lower(), value) for name, value in self._pairs]


class Response:
    """A whole response.

    An error status raises nothing by itself: see `raise_for_status()`.
    """

    __slots__ = (
        "_body",
        "_decoded",
        "_method",
        "elapsed",
        "headers",
        "reason_phrase",
        "status_code",
        "url",
    )

    def __init__(
        self,
        status_code: int,
        *,
        reason_phrase: str = "",
        headers: list[tuple[str, str]] | None = None,
        content: bytes = b"",
        url: str = "",
        seconds: float = 0.0,
    ) -> None:
        self.status_code = status_code
        """The status, for example 200."""
        self.reason_phrase = reason_phrase
        """The words beside the status, for example "OK"; may be empty."""
        self.headers = Headers(headers or [])
        """The headers; `headers["content-type"]` in any case."""
        self.url = url
        """The URL that answered: the last one when redirects were followed."""
        self.elapsed = timedelta(seconds=seconds)
        """From the start of the fetch to its last byte."""
        self._body = content
        self._decoded: bytes | None = None
        self._method = ""

    def __repr__(self) -> str:
        return f"<Response [{self.status_code} {self.reason_phrase}]>"

    @property
    def is_success(self) -> bool:
        """Whether the status is 2xx."""
        return 200 <= self.status_code <= 299

    @property
    def is_redirect(self) -> bool:
        """Whether the status is 3xx."""
        return 300 <= self.status_code <= 399

    @property
    def is_error(self) -> bool:
        """Whether the status is 4xx or 5xx."""
        return 400 <= self.status_code <= 599

    @property
    def content(self) -> bytes:
        """The body, with a gzip or deflate coding undone.

        Raises `TooLarge` when it decodes to more than 64 MiB.
        """
        if self._decoded is None:
            coding = self.headers.get("content-encoding", "").strip().lower()
            if coding in ("gzip", "x-gzip", "deflate") and self._body:
                self._decoded = self._decompressed()
            else:
                self._decoded = self._body
        return self._decoded

    @property
    def encoding(self) -> str:
        """The charset of the content type, or utf-8."""
        message = Message()
        message["content-type"] = self.headers.get("content-type", "")
        charset = message.get_content_charset("utf-8")
        try:
            codecs.lookup(charset)
        except LookupError:
            return "utf-8"
        return charset

    @property
    def text(self) -> str:
        """The body as text; bytes that do not fit the charset become U+FFFD."""
        return self.content.decode(self.encoding, errors="replace")

    def json(self, **kwargs: Any) -> Any:
        """The body read as JSON. Raises `ValueError` when it is none."""
        return json.loads(self.content, **kwargs)

    def raise_for_status(self) -> Response:
        """Return the response if its status is 2xx, else raise `StatusError`."""
        if self.is_success:
            return self
        words = f"{self.status_code} {self.reason_phrase}".rstrip()
        raise StatusError(
            f"answered {words}", method=self._method, url=masked(self.url), response=self
        )

    def _decompressed(self) -> bytes:
        # 47: zlib finds out by itself whether it is gzip or zlib.
        decoder = zlib.decompressobj(47)
        try:
            data = decoder.decompress(self._body, _MAX_DECODED)
        except zlib.error:
            # Some send deflate without its zlib wrapper.
            decoder = zlib.decompressobj(-zlib.MAX_WBITS)
            try:
                data = decoder.decompress(self._body, _MAX_DECODED)
            except zlib.error:
                return self._body
        if decoder.unconsumed_tail:
            raise TooLarge(
                f"decodes to more than {_MAX_DECODED} bytes",
                method=self._method,
                url=masked(self.url),
                phase="body",
            )
        return data
