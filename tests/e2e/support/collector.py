"""An OpenTelemetry collector of one's own: takes spans by HTTP, and keeps them."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from support.program import until

KINDS = {Span.SPAN_KIND_INTERNAL: "internal", Span.SPAN_KIND_SERVER: "server"}
KINDS |= {Span.SPAN_KIND_CLIENT: "client"}


@dataclass(frozen=True)
class Told:
    """A span, with ids as they are written in headers."""

    name: str
    kind: str
    trace: str
    id: str
    parent: str  # empty if it has none
    begun: int  # nanoseconds since 1970
    ended: int
    attributes: dict[str, Any]
    failed: bool
    state: str
    service: str

    @property
    def seconds(self) -> float:
        return (self.ended - self.begun) / 1e9


def value_of(value: AnyValue) -> Any:
    return getattr(value, str(value.WhichOneof("value")))


def attributes_of(pairs: Sequence[KeyValue]) -> dict[str, Any]:
    found = {pair.key: value_of(pair.value) for pair in pairs}
    assert len(found) == len(pairs), f"an attribute comes twice: {pairs}"
    return found


class Collector:
    def __init__(self) -> None:
        self.spans: list[Told] = []
        self.resources: list[dict[str, Any]] = []
        self.heads: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.answers: list[int] = []  # statuses of the next answers; 200 when there are none left
        self.held = threading.Event()
        self.held.set()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                outer.held.wait(60)
                status = outer.answers.pop(0) if outer.answers else 200
                if status == 200:
                    outer.take(self.path, dict(self.headers), body)
                self.send_response(status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def take(self, path: str, headers: dict[str, str], body: bytes) -> None:
        message = ExportTraceServiceRequest.FromString(body)
        self.paths.append(path)
        self.heads.append({name.lower(): value for name, value in headers.items()})
        for of_resource in message.resource_spans:
            resource = attributes_of(of_resource.resource.attributes)
            self.resources.append(resource)
            for of_scope in of_resource.scope_spans:
                assert of_scope.scope.name == "layby"
                for span in of_scope.spans:
                    self.spans.append(told(span, resource["service.name"]))

    def wait_for(self, count: int, seconds: float = 20) -> list[Told]:
        """The spans, once there are so many; more is a mistake."""
        until(
            f"there are not {count} spans, but {[span.name for span in self.spans]}",
            lambda: len(self.spans) >= count,
            seconds,
        )
        assert len(self.spans) == count, [span.name for span in self.spans]
        return self.spans

    def end(self) -> None:
        self.held.set()
        self.server.shutdown()
        self.server.server_close()


def told(span: Span, service: str) -> Told:
    assert len(span.trace_id) == 16
    assert len(span.span_id) == 8
    assert span.end_time_unix_nano >= span.start_time_unix_nano > 0
    return Told(
        name=span.name,
        kind=KINDS[span.kind],
        trace=span.trace_id.hex(),
        id=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        begun=span.start_time_unix_nano,
        ended=span.end_time_unix_nano,
        attributes=attributes_of(span.attributes),
        failed=span.status.code == Status.STATUS_CODE_ERROR,
        state=span.trace_state,
        service=service,
    )


@contextmanager
def collector() -> Iterator[Collector]:
    running = Collector()
    try:
        yield running
    finally:
        running.end()
