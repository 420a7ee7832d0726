"""A WSGI application that answers with what it has seen of the request, a line for each."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

NAMES = ("REMOTE_ADDR", "wsgi.url_scheme", "HTTP_HOST", "HTTP_X_FORWARDED_FOR")


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    lines = [f"{name}={environ.get(name, '')}" for name in NAMES]
    lines.append(f"body={len(environ['wsgi.input'].read())}")
    start_response("200 OK", [("Content-Type", "text/plain")])
    return ["\n".join(lines).encode()]
