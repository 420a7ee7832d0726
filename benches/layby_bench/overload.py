"""Ten times the load that the slots can carry: how much of their work is for somebody, and how soon
those learn it who are refused.

First as many clients as keep every slot busy and leave no queue to speak of: the capacity. Then
ten times that is offered, by clients that come back a moment after every answer, a refusal too, as
many as it takes when the queue is full of them. Queue and times are as a gateway has them
by default.
"""

from __future__ import annotations

import sys

from layby_bench.bench import Bench
from layby_bench.load import Load, put
from layby_bench.report import Column, Row, Table
from layby_bench.servers import GATEWAY, SLOTS, Kind

TIMES = 10
# What a request takes of a slot, in `app/work.py` and at the third party.
WORK = 0.02
# By default.
QUEUE = 1000
# Between an answer and the same client's next request.
PAUSE = 0.5

COLUMNS = [
    Column("capacity", "capacity, requests/s", ".1f"),
    Column("offered", "offered, of capacity", ".1f"),
    Column("goodput", "answered, of capacity", ".3f"),
    Column("p50_ms", "p50 ms", ".0f"),
    Column("p99_ms", "p99 ms", ".0f"),
    Column("refused", "refused/s", ",.0f"),
    Column("refused_p50_ms", "refused p50 ms", ".2f"),
    Column("refused_p99_ms", "refused p99 ms", ".2f"),
    Column("gateway_us", "gateway CPU µs", ".0f"),
    Column("load", "load generator", ".0%"),
    Column("machine", "machine", ".0%"),
]


def overload(bench: Bench) -> Table:
    table = Table(
        "overload",
        "Overload",
        f"{TIMES} times as many requests as {SLOTS} slots can answer, each of"
        f" {WORK * 1000:.0f} ms, with the default queue of {QUEUE} and the default times."
        f" Capacity: what {2 * SLOTS} clients get that never pause. Answered: requests with 200,"
        " all of which were in time by layby's default deadlines; refused: those with 503. CPU is"
        " per request of either kind. Load generator: share of the one core that it can use;"
        " machine: share of all cores.",
        COLUMNS,
    )
    for kind, target in _ways(bench):
        table.add(_overloaded(bench, kind, target))
    return table


def _ways(bench: Bench) -> list[tuple[Kind, str]]:
    common = ["--slots", str(SLOTS)]
    common += ["--listen", "127.0.0.1:{port}", "--admin", "127.0.0.1:{admin}"]
    run = [str(GATEWAY), "run", "work:application", "--python", sys.executable, *common]
    upstream = f"http://127.0.0.1:{bench.origin.port}"
    serve = [str(GATEWAY), "serve", "--upstream", upstream, *common]
    target = f"/{WORK * 1000:.0f}"
    return [
        (Kind("layby, WSGI workers", run, probe=target), target),
        (Kind("layby, HTTP upstream", serve, probe=target), target),
    ]


def _overloaded(bench: Bench, kind: Kind, target: str) -> Row:
    bench.say(f"{kind.name}, {TIMES} times its capacity")
    seconds = 5 if bench.quick else 20
    with bench.start(kind) as server:
        capacity = bench.put(server, Load(target, 2 * SLOTS, measured=seconds)).rate
        offered = TIMES * capacity
        # So many that `offered` of them come every second while the queue is full of the rest.
        clients = round(offered * PAUSE) + QUEUE + SLOTS
        # Until the queue is full and those who came first have been answered.
        warm_up = PAUSE + 2 * QUEUE / capacity
        load = Load(target, clients, seconds, ramp=PAUSE, warm_up=warm_up, pause=PAUSE)
        measured = put(server, load, bench.origin, bench.directory)
    refused = measured.refused
    values = {
        "capacity": capacity,
        "offered": (measured.rate + refused.count / measured.seconds) / capacity,
        "goodput": measured.rate / capacity,
        "p50_ms": measured.p50_ms,
        "p99_ms": measured.p99_ms,
        "refused": refused.count / measured.seconds,
        "refused_p50_ms": refused.p50_ms,
        "refused_p99_ms": refused.p99_ms,
        "gateway_us": measured.gateway_cpu / (measured.ok + refused.count) * 1e6,
        "load": measured.load_busy,
        "machine": measured.machine_busy,
    }
    # Being refused is what is measured here; anything else is wrong.
    other = {what: count for what, count in measured.errors.items() if what != "status 503"}
    wrong = ", ".join(f"{count} x {what}" for what, count in other.items())
    return Row(kind.name, values, wrong)
