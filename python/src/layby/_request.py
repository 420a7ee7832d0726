"""From httpx's arguments to a request: URL, headers and body as they will be sent.

The encodings are httpx's, byte for byte; Host and Content-Length are left to whoever
sends the request.
"""

from __future__ import annotations

import json as jsonlib
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from layby import __version__, _urls
from layby._headers import MAX_HEADERS
from layby._urls import Params

HeaderTypes = Mapping[str, str] | Mapping[bytes, bytes] | Iterable[tuple[str | bytes, str | bytes]]
Content = str | bytes | Iterable[bytes]
Data = Mapping[str, Any] | str | bytes

_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_BAD_VALUE = re.compile(r"[\r\n\0]")
USER_AGENT = f"python-layby/{__version__}"


class Request(NamedTuple):
    """What a fetch sends."""

    method: str
    url: str
    headers: list[tuple[str, str]]
    body: bytes


def build(
    method: str,
    url: str,
    *,
    params: Params | None,
    headers: HeaderTypes | None,
    content: Content | None,
    data: Data | None,
    json: Any,
) -> Request:
    """Encode the arguments. Raises ValueError or TypeError for what cannot be sent."""
    if not _TOKEN.fullmatch(method):
        raise ValueError(f"not an HTTP method: {method!r}")
    sent, authorization = _urls.prepare(str(url), params)
    body, content_type = _encode_body(content, data, json)
    given = _encode_headers(headers)
    names = {name.lower() for name, _ in given}
    defaults = (
        ("Accept", "*/*"),
        ("User-Agent", USER_AGENT),
        ("Authorization", authorization),
        ("Content-Type", content_type),
    )
    missing = [(n, value) for n, value in defaults if value and n.lower() not in names]
    return Request(method.upper(), sent, _bounded(missing + given), body)


def exact(
    method: str, url: str, headers: Iterable[tuple[str | bytes, str | bytes]], body: bytes
) -> Request:
    """A request that is sent as it is. Raises ValueError for what cannot be sent."""
    if not _TOKEN.fullmatch(method):
        raise ValueError(f"not an HTTP method: {method!r}")
    return Request(method, url, _bounded(_encode_headers(headers)), body)


def _encode_body(content: Content | None, data: Data | None, json: Any) -> tuple[bytes, str | None]:
    if isinstance(data, str | bytes | bytearray | memoryview):
        # As in requests, and as httpx takes it: a body, not a form.
        content, data = data, None
    if content is not None:
        if isinstance(content, str):
            return content.encode(), None
        if isinstance(content, bytes | bytearray | memoryview):
            return bytes(content), None
        return b"".join(content), None
    if data:
        return _urls.encode_pairs(data).encode("ascii"), "application/x-www-form-urlencoded"
    if json is not None:
        text = jsonlib.dumps(json, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        return text.encode(), "application/json"
    return b"", None


def _encode_headers(headers: HeaderTypes | None) -> list[tuple[str, str]]:
    if headers is None:
        return []
    items: Iterable[tuple[str | bytes, str | bytes]] = (
        headers.items() if isinstance(headers, Mapping) else headers
    )
    pairs = []
    for given_name, given_value in items:
        name, value = _text(given_name), _text(given_value)
        if not _TOKEN.fullmatch(name):
            raise ValueError(f"not a header name: {name!r}")
        # The value is not shown: it may be a credential.
        if _BAD_VALUE.search(value):
            raise ValueError(f"a line break or NUL in header {name!r}")
        try:
            value.encode("latin-1")
        except UnicodeEncodeError:
            raise ValueError(f"header {name!r} has characters outside ISO-8859-1") from None
        pairs.append((name, value))
    return pairs


def _bounded(headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
    if len(headers) > MAX_HEADERS:
        raise ValueError(f"{len(headers)} headers, and {MAX_HEADERS} is the most")
    return headers


def _text(value: str | bytes) -> str:
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if isinstance(value, str):
        return value
    raise TypeError(f"headers are str or bytes, not {type(value).__name__}")
