"""A WSGI application without a framework, which uses layby in plain sync code."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import parse_qs

import layby


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    body = b"hello"
    if environ["PATH_INFO"] == "/fetch":
        (url,) = parse_qs(environ["QUERY_STRING"])["url"]
        body = layby.get(url).result().content
    elif environ["PATH_INFO"] == "/large":
        body = b"x" * 4_000_000
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
