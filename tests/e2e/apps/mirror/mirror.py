"""Answers that follow from the request alone, so that two of them can be compared (WSGI)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import parse_qs

# What a hop says of itself.
HOP = ("x-forwarded-", "x-request-id", "connection", "transfer-encoding", "content-length")


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    query = {name: values[-1] for name, values in parse_qs(environ["QUERY_STRING"]).items()}
    seen = {
        name[5:].lower().replace("_", "-"): value
        for name, value in environ.items()
        if name.startswith("HTTP_")
    }
    seen = {name: value for name, value in seen.items() if not name.startswith(HOP)}
    told = [
        environ["REQUEST_METHOD"],
        environ["PATH_INFO"],
        environ["QUERY_STRING"],
        environ.get("CONTENT_TYPE", ""),
        sorted(seen.items()),
        len(body),
        hashlib.sha256(body).hexdigest(),
    ]
    answer = (
        json.dumps(told).encode() + b"\n" + bytes(range(256)) * (int(query.get("size", 0)) // 256)
    )
    headers = [("Content-Type", "application/octet-stream"), ("X-Twice", "1"), ("X-Twice", "2")]
    headers += [("Set-Cookie", f"c{n}=v; Path=/") for n in range(int(query.get("cookies", 0)))]
    status = query.get("status", "200 OK")
    if "to" in query:
        headers.append(("Location", query["to"]))
    if "HTTP_RANGE" in environ and status == "200 OK":
        first, _, last = environ["HTTP_RANGE"].removeprefix("bytes=").partition("-")
        part = slice(int(first), min(int(last) + 1, len(answer)))
        headers.append(("Content-Range", f"bytes {first}-{part.stop - 1}/{len(answer)}"))
        status, answer = "206 Partial Content", answer[part]
    if status[:3] in ("204", "304"):
        answer = b""
    elif "stream" not in query:
        headers.append(("Content-Length", str(len(answer))))
    start_response(status, headers)
    if environ["REQUEST_METHOD"] == "HEAD":
        return []
    return [answer[at : at + 50_000] for at in range(0, len(answer), 50_000)]
