"""Writes the files of bytes beside it: frames that both codecs must agree on.

Every frame is laid out by hand, field by field, and not by either codec. Each NAME.bin
has a NAME.json with what a decoder makes of it: the fields (head and body as
ISO-8859-1), or `error`: one of preamble, kind, flags, head, body (refused as soon as the
header is there), truncated (the connection ends within the frame) and pairs (a frame, but
the head of the REQUEST does not have the number of pairs that it says). `preamble` is true
where the bytes start with one. `max_plan` is the bound to decode PARK, HOLD and RELAY with.

    python tests/wire/write.py
"""

import json
from pathlib import Path

HERE = Path(__file__).parent
MAX_PLAN = 32 << 20


def frame(kind, flags, aux, head, body, request, epoch):
    return header(kind, flags, aux, len(head), len(body), request, epoch) + head + body


def header(kind, flags, aux, head_length, body_length, request, epoch):
    return (
        bytes([kind, flags])
        + aux.to_bytes(2, "big")
        + head_length.to_bytes(4, "big")
        + body_length.to_bytes(4, "big")
        + request.to_bytes(8, "big")
        + epoch.to_bytes(4, "big")
    )


def good(
    name,
    kind,
    *,
    flags=0,
    aux=0,
    head=b"",
    body=b"",
    request=0,
    epoch=0,
    preamble=False,
):
    start = b"LAYBY/1\n" if preamble else b""
    write(
        name,
        start + frame(kind, flags, aux, head, body, request, epoch),
        type=kind,
        flags=flags,
        aux=aux,
        request=request,
        epoch=epoch,
        head=head.decode("latin-1"),
        body=body.decode("latin-1"),
        preamble=preamble,
    )


def bad(name, error, data, *, preamble=False):
    write(name, data, error=error, preamble=preamble)


def write(name, data, **expected):
    expected["max_plan"] = MAX_PLAN
    (HERE / f"{name}.bin").write_bytes(data)
    (HERE / f"{name}.json").write_text(json.dumps(expected, indent=1) + "\n")


ENVIRON = (
    b"REQUEST_METHOD\0POST\0SCRIPT_NAME\0\0PATH_INFO\0/caf\xc3\xa9\0QUERY_STRING\0a=1\0"
    b"CONTENT_LENGTH\x005\0wsgi.url_scheme\0http\0HTTP_HOST\0shop.example\0"
)
PLAN = (
    b'{"gather":[{"fetch":{"method":"POST","url":"https://pay.example/charge",'
    b'"headers":[["Content-Type","application/json"]],"timeout":5.0,"body":[0,8]}},{"sleep":0.5}],'
    b'"join":"first_ok","timeout":10.0}'
)
RESULTS = (
    b'{"results":[{"status":200,"reason":"OK","url":"https://pay.example/charge",'
    b'"headers":[["content-type","text/plain"]],"body":[0,4],"seconds":0.25,"redirects":0},null]}'
)

# The control connection.
good(
    "hello",
    0x01,
    preamble=True,
    head=b'{"pid":7,"threads":2,"mode":"wsgi","app":"shop.wsgi:application",'
    b'"version":"layby-python/0.1.0","token":""}',
)
good("slot", 0x02, preamble=True, aux=3, head=b'{"process":1,"key":"k"}')
good(
    "welcome",
    0x03,
    head=b'{"process":1,"key":"k","max_plan":33554432,"timeout":30.0,"thread_locals":[]}',
)
good("refused", 0x04, head=b"speaks version 2 of the link protocol")
good("grant", 0x05, aux=65535)
good("drain", 0x06)
good("bye", 0x07)
good("want", 0x08, request=71, epoch=3)
good("call", 0x09, aux=2, request=71, epoch=3)
good("stack", 0x0A, aux=5, head=b"request 71 has waited 1.0 s to resume there")
good("ping", 0x0B)
good("pong", 0x0C)
good("stack-asked", 0x0A, aux=5, request=9)
good(
    "told",
    0x0D,
    aux=5,
    request=9,
    head=b'{"thread":[{"file":"/srv/shop/views.py","line":88,"function":"checkout"}],"parked":[]}',
)

# Jobs.
good("request", 0x10, aux=7, head=ENVIRON, body=b"hello", request=71)
good("request-fd", 0x10, flags=0x01, aux=7, head=ENVIRON, request=72)
good("request-empty", 0x10, aux=0, request=2**64 - 1, epoch=0)
good("request-largest-body", 0x10, aux=0, body=b"x" * 65536, request=71)
good("request-lazy", 0x10, flags=0x80, aux=7, head=ENVIRON, request=71)
good("resume", 0x11, head=RESULTS, body=b"paid", request=71, epoch=1)
good("resume-fd", 0x11, flags=0x01, head=RESULTS, request=71, epoch=2)
good("cancel", 0x12, request=71, epoch=2**32 - 1)
good("results", 0x13, head=RESULTS, body=b"paid", request=71, epoch=1)
good("results-fd", 0x13, flags=0x01, head=RESULTS, request=71, epoch=1)
good("retire", 0x14)
good("stop", 0x15, request=71, epoch=1)
good("run", 0x16, aux=2, request=71, epoch=3)

# What becomes of them.
ANSWER_HEAD = b"Not Found\0Content-Type\0text/plain\0Set-Cookie\0a=\xe9\0Set-Cookie\0b=2\0"
good("answer", 0x20, flags=0x04, aux=404, head=ANSWER_HEAD, body=b"no\0pe", request=71)
good("answer-more", 0x20, flags=0x02, aux=200, head=b"OK\0", request=71, epoch=1)
good(
    "answer-fd", 0x20, flags=0x05, aux=200, head=b"OK\0", body=b"\0" * 6 + b"\x10\0" * 5, request=71
)
good("body", 0x21, flags=0x02, body=bytes(range(256)), request=71, epoch=1)
good("body-last", 0x21, flags=0x04, request=71, epoch=1)
good("body-broken", 0x21, flags=0x08, request=71, epoch=1)
good("park", 0x22, head=PLAN, body=b'{"a": 1}', request=71)
good("park-shielded", 0x22, flags=0x10, head=PLAN, body=b'{"a": 1}', request=71)
good("park-pinned", 0x22, flags=0x20, head=PLAN, body=b'{"a": 1}', request=71)
good("park-local", 0x22, flags=0x40, request=71, epoch=3)
good("park-lazy", 0x22, flags=0x80, request=71)
good(
    "hold-lazy", 0x23, flags=0x80, head=b'{"hold":{"reason":"mode","source":"a.py:1"}}', request=71
)
good(
    "hold",
    0x23,
    head=PLAN[:-1] + b',"hold":{"reason":"transaction","source":"shop/views.py:88"}}',
    body=b'{"a": 1}',
    request=71,
    epoch=4,
)
good("ready", 0x24, request=71, epoch=4)
good("retired", 0x25)
good(
    "relay",
    0x26,
    flags=0x04,
    head=b'{"fetch":{"method":"POST","url":"https://llm.example/v1","body":[0,8]},"resume":true}',
    body=b'{"a": 1}',
    request=71,
    epoch=1,
)

# What is no frame.
bad(
    "bad-preamble-version",
    "preamble",
    b"LAYBY/2\n" + frame(1, 0, 0, b"{}", b"", 0, 0),
    preamble=True,
)
bad("bad-preamble-http", "preamble", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", preamble=True)
bad("bad-kind-zero", "kind", header(0x00, 0, 0, 0, 0, 0, 0))
bad("bad-kind-gap", "kind", header(0x17, 0, 0, 0, 0, 0, 0))
bad("bad-kind-high", "kind", header(0xFF, 0, 0, 0, 0, 0, 0))
bad("bad-flag-unknown", "flags", header(0x20, 0x20, 200, 0, 0, 71, 0))
bad("bad-flag-pinned-hold", "flags", header(0x23, 0x20, 0, 0, 0, 71, 0))
bad("bad-flag-lazy-resume", "flags", header(0x11, 0x80, 0, 0, 0, 71, 1))
bad("bad-flag-elsewhere", "flags", header(0x22, 0x02, 0, 0, 0, 71, 0))
bad("bad-flag-broken-answer", "flags", header(0x20, 0x08, 200, 0, 0, 71, 0))
bad("bad-flag-on-control", "flags", header(0x05, 0x01, 0, 0, 0, 0, 0))
bad("bad-head-long", "head", header(0x20, 0, 200, (4 << 20) + 1, 0, 71, 0))
bad("bad-head-huge", "head", header(0x01, 0, 0, 2**32 - 1, 0, 0, 0))
bad("bad-body-answer", "body", header(0x20, 0, 200, 0, (256 << 10) + 1, 71, 0))
bad("bad-body-body", "body", header(0x21, 0, 0, 0, 2**32 - 1, 71, 0))
bad("bad-body-request", "body", header(0x10, 0, 0, 0, (64 << 10) + 1, 71, 0))
bad("bad-body-resume", "body", header(0x11, 0, 0, 0, (256 << 10) + 1, 71, 1))
bad("bad-body-park", "body", header(0x22, 0, 0, 0, MAX_PLAN + 1, 71, 0))
bad("bad-body-relay", "body", header(0x26, 0, 0, 0, MAX_PLAN + 1, 71, 0))
bad("bad-body-want", "body", header(0x08, 0, 0, 0, 1, 71, 3))
bad("bad-body-where-none", "body", header(0x24, 0, 0, 0, 1, 71, 0))
bad("truncated-header", "truncated", header(0x24, 0, 0, 0, 0, 71, 0)[:23])
bad("truncated-head", "truncated", frame(0x10, 0, 7, ENVIRON, b"hello", 71, 0)[:60])
bad("truncated-body", "truncated", frame(0x10, 0, 7, ENVIRON, b"hello", 71, 0)[:-1])
bad("truncated-preamble", "truncated", b"LAYBY", preamble=True)

# A NUL that slipped into the path: it would set REMOTE_USER, were the pairs not counted.
FORGED = ENVIRON.replace(b"/caf\xc3\xa9", b"/\0REMOTE_USER\0admin")
bad("pairs-forged", "pairs", frame(0x10, 0, 7, FORGED, b"hello", 71, 0))
bad("pairs-too-few", "pairs", frame(0x10, 0, 8, ENVIRON, b"hello", 71, 0))
bad("pairs-odd", "pairs", frame(0x10, 0, 7, ENVIRON + b"HTTP_X\0", b"hello", 71, 0))
bad("pairs-no-last-nul", "pairs", frame(0x10, 0, 7, ENVIRON[:-1], b"hello", 71, 0))
bad("pairs-none-said", "pairs", frame(0x10, 0, 0, ENVIRON, b"hello", 71, 0))
