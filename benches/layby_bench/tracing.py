"""What tracing costs: the gateway's CPU per request without it, with a share of requests, with all.

The collector is a process that reads and answers 200; its CPU is not counted, since it is not
the gateway's. The smallest application, so that what is compared is mostly the gateway.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from statistics import median

from layby_bench import servers
from layby_bench.bench import Bench
from layby_bench.load import Load, Measured
from layby_bench.report import Column, Row, Table

CLIENTS = 64
ROUNDS = 5

COLUMNS = [
    Column("us", "gateway µs, lowest", ".1f"),
    Column("median_us", "median", ".1f"),
    Column("to_off", "lowest, of off", ".2f"),
    Column("rate", "requests/s", ",.0f"),
    Column("load", "load generator", ".0%"),
]

COLLECTOR = """
from http.server import BaseHTTPRequestHandler, HTTPServer
class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()
    def log_message(self, *_):
        pass
server = HTTPServer(("127.0.0.1", 0), Handler)
print(server.server_address[1], flush=True)
server.serve_forever()
"""


@contextmanager
def collector() -> Iterator[str]:
    command = [sys.executable, "-c", COLLECTOR]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


def tracing(bench: Bench) -> Table:
    table = Table(
        "tracing",
        "Tracing",
        "CPU per request of the gateway for an application of two lines, with three spans for each"
        f" request that is traced; {CLIENTS} keep-alive clients. Lowest and median of alternating"
        " rounds.",
        COLUMNS,
    )
    rounds = 3 if bench.quick else ROUNDS
    load = Load(
        "/hello", CLIENTS, warm_up=0.5 if bench.quick else 1, measured=1 if bench.quick else 3
    )
    with ExitStack() as running:
        url = running.enter_context(collector())

        def kind(name: str, **variables: str) -> servers.Kind:
            app = "hello:application"
            return servers.layby(name, app, views="views_plain", processes=1, **variables)

        on = {"LAYBY_TRACING_OTLP_ENDPOINT": url}
        kinds = [
            kind("layby, off"),
            kind("layby, 5 % traced", **on, LAYBY_TRACING_SAMPLE="0.05"),
            kind("layby, all traced", **on),
        ]
        bench.say(f"{table.title}: {len(kinds)} servers, {rounds} rounds")
        started = [running.enter_context(bench.start(kind)) for kind in kinds]
        seen: list[list[Measured]] = [[] for _ in kinds]
        for _ in range(rounds):
            for server, measured in zip(started, seen, strict=True):
                measured.append(bench.put(server, load))
    lowest = [min(measured, key=Measured.gateway_us) for measured in seen]
    for kind_, measured, low in zip(kinds, seen, lowest, strict=True):
        values = {
            "us": low.gateway_us(),
            "median_us": median(map(Measured.gateway_us, measured)),
            "to_off": low.gateway_us() / lowest[0].gateway_us(),
            "rate": low.rate,
            "load": low.load_busy,
        }
        wrong = sorted({each.wrong() for each in measured} - {""})
        table.add(Row(kind_.name, values, ", ".join(wrong), peer=False))
    return table
