"""Spans for a collector: a request as a tree, tied to the access log and the application."""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from conftest import TO_THE_STUB, Starter
from support.client import Connection
from support.collector import Collector, Told, collector
from support.gateway import free_ports, resident
from support.services import Services
from support.story import eventually, story

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
FLAGS = ("--slots=2", "--processes=1")


@pytest.fixture
def told() -> Iterator[Collector]:
    with collector() as running:
        yield running


def tracing(told: Collector, more: str = "") -> str:
    return f'{TO_THE_STUB}[tracing]\notlp_endpoint = "{told.url}"\n{more}\n'


def at(path: str, stub: Services) -> str:
    return f"{path}?url={quote(stub.url + '/echo?card=4242', safe='')}"


def one(spans: list[Told], name: str) -> Told:
    (found,) = [span for span in spans if span.name == name]
    return found


@story(60)
async def test_a_request_is_a_tree_of_spans(
    stub: Services, start: Starter, told: Collector, tmp_path: Path
) -> None:
    log = tmp_path / "access.log"
    keys = 'headers = ["x-key: 7"]\nresource_attributes = ["deployment.environment.name=test"]\n'
    keys += f'[access_log]\nformat = "json"\npath = "{log}"\n[[route]]\npath = "/traced"\n'
    gateway = start(tracing(told, keys), app="traced", flags=FLAGS)
    connection = await Connection.open(gateway.address)
    before = time.time_ns()
    answer = await connection.ask("GET", at("/traced", stub), [("user-agent", "told/1")])
    after = time.time_ns()
    assert answer.status == 200, answer.body
    seen = answer.json()
    spans = await asyncio.to_thread(told.wait_for, 8)

    assert {span.trace for span in spans} == {seen["span"]["trace"]}
    assert all(before <= span.begun <= span.ended <= after + 5e8 for span in spans)
    request = one(spans, "GET /traced")
    assert (request.parent, request.kind, request.failed) == ("", "server", False)
    assert request.service == "layby"
    assert request.attributes == {
        "http.request.method": "GET",
        "http.response.status_code": 200,
        "http.route": "/traced",
        "url.scheme": "http",
        "url.path": "/traced",
        "server.address": "127.0.0.1",
        "server.port": gateway.port,
        "client.address": "127.0.0.1",
        "user_agent.original": "told/1",
        "network.protocol.version": "1.1",
        "layby.request_id": answer.header("x-request-id"),
        "layby.parks": 1,
    }
    # The application's span is the request's child, and says so itself.
    assert seen["span"]["parent"] == request.id
    assert seen["span"]["sampled"]
    stages = [span for span in spans if span.parent == request.id]
    stages.sort(key=lambda span: span.begun)
    assert [span.name for span in stages] == ["queue", "step", "park", "resume queue", "step"]
    assert all(span.kind == "internal" for span in stages)
    for earlier, later in itertools.pairwise(stages):
        assert earlier.ended <= later.begun
    step = stages[1].attributes
    assert step["layby.worker.pid"] == gateway.worker_pids()[0]
    assert step["layby.slot"] in (0, 1)

    # One fetch lies in the park, the other in the span that the application made for it.
    park = stages[2]
    by_parent = {span.parent: span for span in spans if span.kind == "client"}
    assert set(by_parent) == {park.id, seen["span"]["id"]}
    for span, heard in (
        (by_parent[park.id], seen["plain"]),
        (by_parent[seen["span"]["id"]], seen["own"]),
    ):
        assert heard["traceparent"] == f"00-{span.trace}-{span.id}-01"
        assert park.begun <= span.begun <= span.ended <= park.ended + 5e7
        assert span.attributes == {
            "http.request.method": "GET",
            "http.response.status_code": 200,
            "url.full": f"{stub.url}/echo",
            "server.address": "127.0.0.1",
            "server.port": stub.port,
        }

    (head, path) = told.heads[0], told.paths[0]
    assert (head["x-key"], head["content-type"], path) == (
        "7",
        "application/x-protobuf",
        "/v1/traces",
    )
    resource = told.resources[0]
    assert resource["deployment.environment.name"] == "test"
    assert resource["process.pid"] == gateway.pid
    assert all("x-key: ***" in line for line in gateway.lines_with("x-key"))
    gateway.signal(signal.SIGTERM)
    assert gateway.wait() == 0
    (line,) = [json.loads(line) for line in log.read_text().splitlines()]
    assert (line["trace_id"], line["request_id"]) == (request.trace, answer.header("x-request-id"))
    for name, stage in (("queue", "queue"), ("park", "park"), ("resume queue", "resume")):
        assert abs(one(stages, name).seconds - line.get(f"{stage}_seconds", 0)) < 0.02


@story(60)
async def test_waits_in_place_errors_and_shed_requests_are_to_be_seen(
    stub: Services, start: Starter, told: Collector
) -> None:
    gateway = start(tracing(told), app="traced", flags=FLAGS)
    connection = await Connection.open(gateway.address)
    assert (await connection.ask("GET", at("/held", stub))).status == 200
    spans = await asyncio.to_thread(told.wait_for, 5)
    wait = one(spans, "wait in place")
    (fetch,) = [span for span in spans if span.kind == "client"]
    assert wait.parent == one(spans, "step").id
    assert fetch.parent == wait.id
    assert wait.attributes["layby.reason"] in ("mode", "middleware", "unsupported")

    told.spans.clear()
    assert (await connection.ask("POST", "/fails", body=b"x" * 10)).status == 500
    spans = await asyncio.to_thread(told.wait_for, 4)
    request = one(spans, "POST")
    assert request.failed
    assert request.attributes["error.type"] == "500"
    assert one(spans, "body").attributes == {"http.request.body.size": 10}

    told.spans.clear()
    assert (await connection.ask("GET", "/%00", [("host", "a b")])).status == 400
    (request,) = await asyncio.to_thread(told.wait_for, 1)
    assert (request.attributes["layby.why"], request.failed) == ("refused", False)


@story(60)
async def test_who_comes_with_a_trace_has_chosen(
    stub: Services, start: Starter, told: Collector
) -> None:
    gateway = start(tracing(told, "sample = 0"), app="traced", flags=FLAGS)
    connection = await Connection.open(gateway.address)

    # Not sampled: the context goes through as it came.
    given = f"00-{TRACE}-{PARENT}-00"
    seen = (await connection.ask("GET", at("/traced", stub), [("traceparent", given)])).json()
    assert seen["headers"]["Traceparent"] == given
    assert not seen["span"]["sampled"]
    assert seen["plain"]["traceparent"].startswith(f"00-{TRACE}-")
    assert seen["plain"]["traceparent"].endswith("-00")
    # Not chosen: the application hears of that, so that its spans do not hang in the air.
    seen = (await connection.ask("GET", at("/traced", stub))).json()
    assert not seen["span"]["sampled"]
    assert seen["headers"]["Traceparent"].endswith("-00")
    # Sampled: it is told, whatever the share.
    given = [("traceparent", f"00-{TRACE}-{PARENT}-01"), ("tracestate", "vendor=1")]
    seen = (await connection.ask("GET", at("/traced", stub), given)).json()
    spans = await asyncio.to_thread(told.wait_for, 8)
    assert {span.trace for span in spans} == {TRACE}
    (request,) = [span for span in spans if span.kind == "server"]
    assert (request.parent, request.state) == (PARENT, "vendor=1")
    assert seen["span"]["parent"] == request.id
    assert seen["plain"]["tracestate"] == "vendor=1"

    # A reload changes the share.
    text = gateway.configuration.read_text()
    gateway.configuration.write_text(text.replace("sample = 0", "sample = 1"))
    gateway.signal(signal.SIGHUP)
    await eventually("it is not reloaded", lambda: gateway.lines_with("reloaded"), 20)
    assert (await connection.ask("GET", "/fails")).status == 500
    await asyncio.to_thread(told.wait_for, 11)


@story(60)
async def test_without_a_collector_nothing_is_sent_and_no_header_changes(
    stub: Services, start: Starter, told: Collector
) -> None:
    # The application's variables, switched off.
    gateway = start(
        TO_THE_STUB,
        app="traced",
        flags=FLAGS,
        OTEL_EXPORTER_OTLP_ENDPOINT=told.url,
        OTEL_TRACES_EXPORTER="none",
        OTEL_SERVICE_NAME="shop",
    )
    connection = await Connection.open(gateway.address)
    seen = (await connection.ask("GET", at("/traced", stub))).json()
    assert "Traceparent" not in seen["headers"]
    assert "traceparent" not in seen["plain"]
    threads = {(task / "comm").read_text() for task in Path(f"/proc/{gateway.pid}/task").iterdir()}
    assert "layby-spans\n" not in threads
    gateway.signal(signal.SIGTERM)
    assert gateway.wait() == 0
    assert told.paths == []


@story(60)
async def test_opentelemetrys_own_variables_are_enough(
    stub: Services, start: Starter, told: Collector
) -> None:
    gateway = start(
        TO_THE_STUB,
        app="traced",
        flags=FLAGS,
        OTEL_EXPORTER_OTLP_ENDPOINT=f"{told.url}/otlp/",
        OTEL_EXPORTER_OTLP_HEADERS="x-key=a%20b",
        OTEL_SERVICE_NAME="shop",
        OTEL_RESOURCE_ATTRIBUTES="service.version=7",
    )
    connection = await Connection.open(gateway.address)
    assert (await connection.ask("GET", "/fails")).status == 500
    # The end of the gateway does not wait for the next batch, nor does it lose this one.
    gateway.signal(signal.SIGTERM)
    assert gateway.wait() == 0
    assert {span.name for span in told.spans} == {"GET", "queue", "step"}
    assert {span.service for span in told.spans} == {"shop"}
    assert told.paths == ["/otlp/v1/traces"]
    assert told.heads[0]["x-key"] == "a b"
    assert told.resources[0]["service.version"] == "7"


@story(60)
async def test_a_collector_that_fails_costs_spans_and_nothing_else(
    stub: Services, start: Starter, told: Collector
) -> None:
    (port,) = free_ports(1)
    nobody = f'{TO_THE_STUB}[tracing]\notlp_endpoint = "http://127.0.0.1:{port}"\n'
    gateway = start(nobody, app="traced", flags=FLAGS)

    async def ask_often(times: int) -> None:
        connection = await Connection.open(gateway.address)
        for _ in range(times):
            assert (await connection.ask("GET", "/fails")).status == 500

    await ask_often(50)
    before = resident(gateway.pid)
    # Three spans each: more than the queue holds.
    await asyncio.gather(*(ask_often(500) for _ in range(16)))
    await eventually(
        "nothing is dropped",
        lambda: gateway.metric("layby_spans_total", outcome="queue_full") > 0,
        20,
    )
    assert resident(gateway.pid) - before < 32 * 1024 * 1024
    await eventually(
        "no batch is given up",
        lambda: gateway.metric("layby_spans_total", outcome="unreachable") > 0,
        20,
    )
    assert gateway.metric("layby_spans_total", outcome="sent") == 0
    assert len(gateway.lines_with("spans are dropped")) == 1
    gateway.signal(signal.SIGTERM)
    assert gateway.wait() == 0


@story(60)
async def test_a_collector_that_hangs_is_not_waited_for_at_the_end(
    start: Starter, told: Collector
) -> None:
    told.held.clear()
    gateway = start(tracing(told), app="traced", flags=FLAGS)
    connection = await Connection.open(gateway.address)
    assert (await connection.ask("GET", "/fails")).status == 500
    connection.transport.abort()
    begun = time.monotonic()
    gateway.signal(signal.SIGTERM)
    assert await asyncio.to_thread(gateway.wait) == 0
    assert time.monotonic() - begun < 8


@story(60)
async def test_a_collector_that_is_busy_is_asked_again(start: Starter, told: Collector) -> None:
    told.answers += [503, 429]
    gateway = start(tracing(told), app="traced", flags=FLAGS)
    connection = await Connection.open(gateway.address)
    assert (await connection.ask("GET", "/fails")).status == 500
    await asyncio.to_thread(told.wait_for, 3)
    await eventually(
        "they are not counted",
        lambda: gateway.metric("layby_spans_total", outcome="sent") == 3,
        5,
    )
    # What it will never take is not sent twice.
    told.answers += [400]
    assert (await connection.ask("GET", "/fails")).status == 500
    await eventually(
        "they are not counted",
        lambda: gateway.metric("layby_spans_total", outcome="refused") == 3,
        10,
    )
    assert len(told.spans) == 3
