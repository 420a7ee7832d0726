"""What a server itself costs: CPU per request of the smallest application and of a Django view.

The same load for all, 64 clients that never pause, in rounds that alternate between the
servers: what else the machine does then hits all of them, and the lowest round is the one
least disturbed. Throughput is shown for completeness; on a machine where the load generator
shares the cores it says little.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from statistics import median

from layby_bench import servers
from layby_bench.bench import Bench
from layby_bench.load import Load, Measured
from layby_bench.report import Column, Row, Table
from layby_bench.servers import SLOTS, Kind

CLIENTS = 64
ROUNDS = 5
PEER = f"granian 1 x {SLOTS}"

COLUMNS = [
    Column("us", "CPU µs, lowest", ".1f"),
    Column("median_us", "median", ".1f"),
    Column("to_granian", f"lowest, of {PEER}", ".2f"),
    Column("median_to_granian", f"median, of {PEER}", ".2f"),
    Column("gateway_us", "gateway µs", ".1f"),
    Column("workers_us", "workers µs", ".1f"),
    Column("rate", "requests/s", ",.0f"),
    Column("p99_ms", "p99 ms", ".1f"),
    Column("load", "load generator", ".0%"),
]
HOW_TO_READ = (
    f"CPU per request of everything that serves it, gateway and workers; {CLIENTS} keep-alive"
    " clients. Names end with processes x threads. Lowest and median of alternating rounds; the"
    " two parts, requests/s and p99 are from the lowest."
)


def wsgi(bench: Bench) -> Table:
    table = Table(
        "hello-wsgi", "Hello, WSGI", f"An application of two lines. {HOW_TO_READ}", COLUMNS
    )
    app = "hello:application"
    processes = servers.layby_processes()
    kinds = [
        servers.layby(_layby(processes), app, views="views_plain"),
        servers.layby(_layby(1), app, views="views_plain", processes=1),
        servers.granian(SLOTS, app=app),
        servers.granian(SLOTS // processes, app=app, workers=processes),
        servers.gthread(SLOTS, app=app, views="views_plain"),
    ]
    compare(bench, table, kinds)
    return table


def django(bench: Bench) -> Table:
    table = Table(
        "hello-django",
        "Hello, Django",
        "A view that only answers, below the full default middleware. layby runs a project that"
        " never waits as plain WSGI; one with views that do, as coroutines (also those views that"
        f" do not). {HOW_TO_READ}",
        COLUMNS,
    )
    processes = servers.layby_processes()
    kinds = [
        servers.layby(_layby(processes), views="views_plain"),
        servers.layby(_layby(1), views="views_plain", processes=1),
        servers.layby(f"{_layby(processes)}, coroutine"),
        servers.layby(f"{_layby(1)}, coroutine", processes=1),
        servers.granian(SLOTS),
        servers.granian(SLOTS // processes, workers=processes),
        servers.gthread(SLOTS, views="views_plain"),
    ]
    compare(bench, table, kinds)
    return table


def compare(bench: Bench, table: Table, kinds: Sequence[Kind]) -> None:
    rounds = 3 if bench.quick else ROUNDS
    load = Load(
        "/hello", CLIENTS, warm_up=0.5 if bench.quick else 1, measured=1 if bench.quick else 3
    )
    bench.say(f"{table.title}: {len(kinds)} servers, {rounds} rounds")
    seen: list[list[Measured]] = [[] for _ in kinds]
    with ExitStack() as running:
        started = [running.enter_context(bench.start(kind)) for kind in kinds]
        for _ in range(rounds):
            for server, measured in zip(started, seen, strict=True):
                measured.append(bench.put(server, load))

    lowest = [min(measured, key=Measured.us) for measured in seen]
    medians = [median(map(Measured.us, measured)) for measured in seen]
    peer = next(at for at, kind in enumerate(kinds) if kind.name == PEER)
    for kind, measured, low, middle in zip(kinds, seen, lowest, medians, strict=True):
        is_layby = kind.name.startswith("layby")
        values = {
            "us": low.us(),
            "median_us": middle,
            "to_granian": low.us() / lowest[peer].us(),
            "median_to_granian": middle / medians[peer],
            "gateway_us": low.gateway_us() if is_layby else None,
            "workers_us": low.workers_us() if is_layby else None,
            "rate": low.rate,
            "p99_ms": low.p99_ms,
            "load": low.load_busy,
        }
        wrong = sorted({each.wrong() for each in measured} - {""})
        table.add(Row(kind.name, values, ", ".join(wrong), peer=not is_layby))


def _layby(processes: int) -> str:
    return f"layby {processes} x {SLOTS // processes}"
