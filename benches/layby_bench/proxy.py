"""What it costs to pass a request on: CPU of layby, nginx and haproxy in front of the same server.

The proxy has a core to itself, clients and server have the others. All clients ask without pause,
in rounds that alternate between the proxies: what else the machine does then hits all of them, and
the lowest round is the one least disturbed.
"""

from __future__ import annotations

from contextlib import ExitStack
from statistics import median

from layby_bench import machine, proxies
from layby_bench.bench import Bench
from layby_bench.load import Load, Measured, Upstream, put
from layby_bench.report import Column, Row, Table
from layby_bench.servers import Server

CLIENTS = (64, 1000)
BODIES = (1024, 64 * 1024)
ROUNDS = 5

COLUMNS = [
    Column("us", "CPU µs, lowest", ".1f"),
    Column("median_us", "median", ".1f"),
    Column("to_peer", "lowest, of the better peer", ".2f"),
    Column("median_to_peer", "median, of the better peer", ".2f"),
    Column("rate", "requests/s", ",.0f"),
    Column("p99_ms", "p99 ms", ".1f"),
    Column("load", "load generator", ".0%"),
    Column("origin", "server", ".0%"),
]


def proxy(bench: Bench) -> Table:
    table = Table(
        "proxy",
        "Plain proxying",
        "CPU per request of a proxy in front of an HTTP server on a Unix socket, with clients that"
        " keep their connections and never pause. Each proxy has one thread for requests;"
        f" layby and haproxy have {proxies.CONNECTIONS} connections to the server, nginx as many as"
        " requests. Lowest and median of alternating rounds; the better peer is the cheaper of"
        " nginx and haproxy in the same rounds; requests/s and p99 are from the lowest. Load"
        " generator and server: share of the one core that each can use.",
        COLUMNS,
    )
    # Without a core for each side they share, and disturb each other alike.
    ours, others = machine.halves()
    with ExitStack() as running:
        upstream = Upstream.start(bench.directory, others)
        running.enter_context(upstream.process)
        kinds = [
            each(upstream.socket, cores=ours)
            for each in (proxies.layby, proxies.nginx, proxies.haproxy)
        ]
        servers = [running.enter_context(bench.start(kind)) for kind in kinds]
        for clients in CLIENTS:
            for body in BODIES:
                compare(bench, table, servers, upstream, clients, body, others)
    return table


def compare(
    bench: Bench,
    table: Table,
    servers: list[Server],
    upstream: Upstream,
    clients: int,
    body: int,
    cores: frozenset[int] | None,
) -> None:
    rounds = 3 if bench.quick else ROUNDS
    what = f"{clients} clients, {body // 1024} KiB"
    bench.say(f"{table.title}: {what}, {rounds} rounds")
    load = Load(
        f"/{body}",
        clients,
        ramp=0.2,
        warm_up=0.7,
        measured=1 if bench.quick else 3,
        cores=cores,
    )
    seen: list[list[Measured]] = [[] for _ in servers]
    for _ in range(rounds):
        for server, measured in zip(servers, seen, strict=True):
            measured.append(put(server, load, upstream, bench.directory))
    lowest = [min(measured, key=Measured.us) for measured in seen]
    medians = [median(map(Measured.us, measured)) for measured in seen]
    for server, measured, low, middle in zip(servers, seen, lowest, medians, strict=True):
        is_peer = server.kind.name != "layby"
        values = {
            "us": low.us(),
            "median_us": middle,
            "to_peer": low.us() / min(each.us() for each in lowest[1:]),
            "median_to_peer": middle / min(medians[1:]),
            "rate": low.rate,
            "p99_ms": low.p99_ms,
            "load": low.load_busy,
            "origin": low.origin_busy,
        }
        wrong = sorted({each.wrong() for each in measured} - {""})
        table.add(Row(f"{server.kind.name}, {what}", values, ", ".join(wrong), peer=is_peer))
