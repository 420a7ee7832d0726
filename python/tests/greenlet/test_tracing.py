"""Sentry's scope and OpenTelemetry's span over a park, in both modes, with the real packages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import sentry_sdk
from opentelemetry import baggage, context, trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sentry_sdk.integrations.wsgi import SentryWsgiMiddleware
from sentry_sdk.transport import Transport
from stories import Start, around_a_sleep, parks, resume, text

import layby

MODES = pytest.mark.parametrize("mode", ["greenlet", "coroutine"])


class Kept(Transport):
    """Keeps what would be sent."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Any] = []

    def capture_envelope(self, envelope: Any) -> None:
        self.events += [item.payload.json for item in envelope.items if item.payload.json]


@pytest.fixture
def sentry() -> Iterator[Kept]:
    kept = Kept()
    sentry_sdk.init(
        dsn="http://key@127.0.0.1:9/1",
        transport=kept,
        traces_sample_rate=1.0,
        default_integrations=False,
        auto_enabling_integrations=False,
    )
    yield kept
    sentry_sdk.init()


@pytest.fixture
def spans() -> Iterator[tuple[trace.Tracer, InMemorySpanExporter]]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield provider.get_tracer("shop"), exporter
    provider.shutdown()


def by_turns(start: Start, mode: str, app: Any, count: int = 10) -> list[str]:
    """Requests that park before any goes on, on two slots; coroutines change theirs."""
    slots = start(app, mode=mode, slots=2)
    for request in range(1, count + 1):
        slots[request % 2].request(request, f"/{request}")
        parks(slots[request % 2], request, mode)
    answers = []
    for request in range(1, count + 1):
        slot = slots[request % 2 if mode == "greenlet" else (request + 1) % 2]
        resume(slot, request)
        answers.append(text(slot))
    return answers


@MODES
def test_opentelemetry_spans_go_on_with_their_request(
    start: Start, mode: str, spans: tuple[trace.Tracer, InMemorySpanExporter]
) -> None:
    tracer, exporter = spans

    def before(environ: dict[str, Any]) -> Any:
        path = environ["PATH_INFO"]
        assert not trace.get_current_span().get_span_context().is_valid
        opened = tracer.start_as_current_span(path)
        opened.__enter__()
        token = context.attach(baggage.set_baggage("path", path))
        return path, opened, token

    def after(state: Any) -> bytes:
        path, opened, token = state
        seen = baggage.get_baggage("path")
        with tracer.start_as_current_span(f"after {path}"):
            trace.get_current_span().set_attribute("path", path)
        context.detach(token)
        current = trace.get_current_span()
        opened.__exit__(None, None, None)
        return f"{path} {seen} {current.name}".encode()  # type: ignore[attr-defined]

    answers = by_turns(start, mode, around_a_sleep(mode, before, after))
    assert answers == [f"/{n} /{n} /{n}" for n in range(1, 11)]
    finished = {span.name: span for span in exporter.get_finished_spans()}
    assert len(finished) == 20
    for number in range(1, 11):
        outer, inner = finished[f"/{number}"], finished[f"after /{number}"]
        assert inner.parent is not None
        assert inner.parent.span_id == outer.context.span_id
        assert inner.context.trace_id == outer.context.trace_id
        assert outer.parent is None
    assert len({span.context.trace_id for span in finished.values()}) == 10


@MODES
def test_sentry_scopes_go_on_with_their_request(start: Start, mode: str, sentry: Kept) -> None:
    def before(environ: dict[str, Any]) -> Any:
        path = environ["PATH_INFO"]
        scopes = sentry_sdk.isolation_scope()
        scope = scopes.__enter__()
        assert "path" not in scope._tags, "the scope of another request"
        scope.set_tag("path", path)
        sentry_sdk.add_breadcrumb(message=f"before {path}")
        transaction = sentry_sdk.start_transaction(name=path)
        transaction.__enter__()
        return path, scopes, transaction

    def after(state: Any) -> bytes:
        path, scopes, transaction = state
        current = sentry_sdk.get_current_span()
        assert current is transaction
        with sentry_sdk.start_span(op="after", name=path):
            sentry_sdk.capture_message(f"after {path}")
        transaction.__exit__(None, None, None)
        scopes.__exit__(None, None, None)
        return path.encode()

    answers = by_turns(start, mode, around_a_sleep(mode, before, after))
    assert answers == [f"/{n}" for n in range(1, 11)]
    messages = [event for event in sentry.events if event.get("message")]
    transactions = {
        event["transaction"]: event for event in sentry.events if event.get("type") == "transaction"
    }
    assert len(messages) == len(transactions) == 10
    for event in messages:
        path = event["message"].removeprefix("after ")
        assert event["tags"]["path"] == path
        assert [each["message"] for each in event["breadcrumbs"]["values"]] == [f"before {path}"]
        trace_id = event["contexts"]["trace"]["trace_id"]
        assert transactions[path]["contexts"]["trace"]["trace_id"] == trace_id
        (span,) = transactions[path]["spans"]
        assert (span["op"], span["description"]) == ("after", path)
    assert len({event["contexts"]["trace"]["trace_id"] for event in messages}) == 10


def test_sentry_s_own_wsgi_middleware_reports_the_right_request(start: Start, sentry: Kept) -> None:
    def view(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        sentry_sdk.set_user({"id": environ["PATH_INFO"]})
        layby.sleep(1).result()
        raise ValueError(environ["PATH_INFO"])

    [slot] = start(SentryWsgiMiddleware(view))
    for request in range(1, 6):
        slot.request(request, f"/{request}")
        parks(slot, request, "greenlet")
    for request in range(1, 6):
        resume(slot, request)
        assert slot.answer()[0].aux == 500
    failures = [event for event in sentry.events if event.get("exception")]
    assert len(failures) == 5
    for event in failures:
        path = event["exception"]["values"][0]["value"]
        assert event["user"] == {"id": path}
        assert event["request"]["url"].endswith(path)
