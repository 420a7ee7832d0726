"""The main scenario: a 10 ms query, a third party, a 10 ms query; 8 slots.

While the third party takes its time a request needs neither thread nor connection, so what 8
connections can do depends on the queries alone. There are two bounds for it:

- *query-only*: 8 / (2 x the query's time on a connection that has nothing else to do);
- *in-slot*: 8 / (the time that one request holds slots when it is alone), the application's
  own CPU included.

Both are measured in the same run. More clients than the bound can serve are kept waiting, so
there is always work: what is missing to the bound is what layby lost.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from layby_bench import machine, servers
from layby_bench.bench import Bench
from layby_bench.load import Load, Measured
from layby_bench.report import Column, Row, Table
from layby_bench.servers import SLOTS, Kind, Server

CLIENTS = 400
THIRD_PARTY = 0.5
LATENCIES = (0.1, 0.5, 2.0, 10.0)
FETCHES = (1, 8, 32)
WAYS = (
    ("coroutine, await layby.get", "coroutine", "coroutine"),
    ("coroutine, layby.io and httpx", "coroutine", "io"),
    ("greenlet, layby.get().result()", "greenlet", "plain"),
    ("greenlet, requests", "greenlet", "requests"),
    ("greenlet, httpx", "greenlet", "httpx"),
    ("wsgi, layby.get().result()", "wsgi", "plain"),
)
QUERIES = 2
# About what a request holds slots for, to plan a run: the bounds are measured.
IN_SLOT = 0.021

COLUMNS = [
    Column("rate", "requests/s", ".1f"),
    Column("of_in_slot", "of in-slot bound", ".3f"),
    Column("of_query", "of query-only bound", ".3f"),
    Column("connections", "most connections"),
    Column("p50_ms", "p50 ms", ".0f"),
    Column("p99_ms", "p99 ms", ".0f"),
    Column("gateway_ms", "gateway CPU ms", ".2f"),
    Column("workers_ms", "workers CPU ms", ".2f"),
    Column("load", "load generator", ".0%"),
    Column("origin", "third party", ".0%"),
    Column("machine", "machine", ".0%"),
]
HOW_TO_READ = (
    "CPU is per request. Load generator and third party: share of the one core that each can"
    " use; machine: share of all cores."
)


@dataclass(frozen=True)
class Bounds:
    """What one request needs when it is alone, in seconds."""

    in_slot: float
    query: float

    @property
    def per_second(self) -> float:
        return SLOTS / self.in_slot

    @property
    def per_second_query_only(self) -> float:
        return SLOTS / (QUERIES * self.query)


def main(bench: Bench) -> Table:
    table = Table(
        "main",
        "Main scenario",
        f"A Django view with the full middleware: 10 ms query, a third party that takes"
        f" {THIRD_PARTY * 1000:.0f} ms, 10 ms query, on PostgreSQL. {CLIENTS} clients with"
        f" keep-alive, each sending its next request when it has its answer. layby with {SLOTS}"
        f" slots in {servers.layby_processes()} processes (its default). {HOW_TO_READ} Clients of"
        f" a server that answers few requests wait for longer than was measured: its p50 and p99"
        f" are then those of the lucky ones.",
        [*COLUMNS[:1], Column("to_layby", "of layby", ".3f"), *COLUMNS[1:]],
    )
    target = _target("checkout", THIRD_PARTY)
    measured, connections, bounds = _between_bounds(bench, target)
    table.add(row("layby", measured, connections, bounds, to_layby=1.0))
    table.remarks.append(_explained(bounds))
    with machine.awake():
        awake, at_most, its_bounds = _between_bounds(bench, target)
    to_layby = awake.rate / measured.rate
    # Work that gives way to all other is no load, so what the machine was busy with says nothing.
    values = row("layby, no core asleep", awake, at_most, its_bounds, to_layby=to_layby)
    table.add(replace(values, values={**values.values, "machine": None}))
    table.remarks.append(
        "In the second row work that gives way to any other keeps the cores from halting; its"
        f" bounds were measured so too ({its_bounds.in_slot * 1000:.2f} ms in a slot,"
        f" {its_bounds.query * 1000:.2f} ms for the query). The difference is what it costs on"
        " this machine to wake a core that sleeps."
    )

    for kind in (servers.gthread(SLOTS), servers.gthread(200, workers=2), servers.uvicorn(2)):
        # Where every request holds a thread for half a second, clients come round slowly.
        peer, connections = against(bench, kind, target, 10 if bench.quick else 30)
        to_layby = peer.rate / measured.rate
        table.add(row(kind.name, peer, connections, bounds, to_layby=to_layby))
    return table


def latency(bench: Bench) -> Table:
    table = Table(
        "latency",
        "Main scenario, third parties from 0.1 s to 10 s",
        "layby as above, clients in proportion to the third party's time, so that as many"
        f" requests are parked as wait for a slot. {HOW_TO_READ}",
        [Column("clients", "clients"), *COLUMNS],
    )
    with bench.start(servers.layby()) as server:
        bounds = alone(bench, server, _target("checkout", THIRD_PARTY))
    for seconds in LATENCIES:
        clients = round(CLIENTS * seconds / THIRD_PARTY)
        with bench.start(servers.layby()) as server:
            target = _target("checkout", seconds)
            measured, connections = crowd(bench, server, target, clients, seconds)
        table.add(row(f"{seconds:g} s", measured, connections, bounds, clients=clients))
    table.remarks += [_explained(bounds), _spread(table)]
    return table


def fanout(bench: Bench) -> Table:
    table = Table(
        "fanout",
        "Main scenario, fan-out",
        f"layby and {CLIENTS} clients as above; the view fetches from the third party"
        f" ({THIRD_PARTY * 1000:.0f} ms) several times side by side and reads every answer as"
        " JSON. Reading them is work in the slot: each row has an in-slot bound of its own,"
        f" measured with as many fetches. {HOW_TO_READ}",
        [Column("in_slot_ms", "in slot, ms", ".2f"), *COLUMNS],
    )
    for fetches in FETCHES:
        target = _target("compare", THIRD_PARTY, fetches)
        with bench.start(servers.layby()) as server:
            bounds = alone(bench, server, target)
            measured, connections = crowd(bench, server, target, CLIENTS, THIRD_PARTY)
        name = "1 fetch" if fetches == 1 else f"{fetches} fetches"
        in_slot_ms = bounds.in_slot * 1000
        table.add(row(name, measured, connections, bounds, in_slot_ms=in_slot_ms))
    table.remarks.append(_spread(table))
    return table


def modes(bench: Bench) -> Table:
    table = Table(
        "modes",
        "Main scenario, modes and clients",
        f"The same work, {CLIENTS} clients and {THIRD_PARTY * 1000:.0f} ms, in every mode and with"
        " clients that people have. Each row has an in-slot bound of its own, because what a client"
        " costs is work in the slot; in wsgi mode the slot is held while the third party takes"
        f" its time, which is what the mode promises. {HOW_TO_READ}",
        [Column("in_slot_ms", "in slot, ms", ".2f"), *COLUMNS],
    )
    for name, mode, view in WAYS:
        target = _target(view, THIRD_PARTY)
        with bench.start(servers.layby(views="views_modes", mode=mode)) as server:
            bounds = alone(bench, server, target)
            measured, connections = crowd(bench, server, target, CLIENTS, THIRD_PARTY)
        in_slot_ms = bounds.in_slot * 1000
        table.add(row(name, measured, connections, bounds, in_slot_ms=in_slot_ms))
    return table


def _between_bounds(bench: Bench, target: str) -> tuple[Measured, int, Bounds]:
    """The crowd, with the bounds measured before and after."""
    with bench.start(servers.layby()) as server:
        first = alone(bench, server, target)
        measured, connections = crowd(bench, server, target, CLIENTS, THIRD_PARTY)
        second = alone(bench, server, target)
    bounds = Bounds((first.in_slot + second.in_slot) / 2, (first.query + second.query) / 2)
    return measured, connections, bounds


def alone(bench: Bench, server: Server, target: str) -> Bounds:
    """The bounds, from a single client; nobody else is served meanwhile."""
    bench.say(f"layby, one client, {target}")
    query = bench.postgres.query_seconds(50 if bench.quick else 200)
    # The first requests of every slot open its connection and warm the code up.
    bench.put(server, Load(target, clients=SLOTS, measured=0.1, warm_up=3))
    requests = 10 if bench.quick else 30
    # Those clients left in the middle; the ends of their requests are not what is measured.
    before = server.metrics_when_quiet()
    server.get_in_turn(target, requests)
    after = server.metrics_when_quiet()
    busy = "layby_slot_busy_seconds_sum"
    return Bounds(in_slot=(after[busy] - before[busy]) / requests, query=query)


def crowd(
    bench: Bench, server: Server, target: str, clients: int, third_party: float
) -> tuple[Measured, int]:
    """All clients at layby. They start one by one over the time that a round of all of them
    takes: if all came at once they would go on in waves, and what is counted would depend on
    where in a wave the measured time begins."""
    bench.say(f"layby, {clients} clients, {target}")
    round_trip = clients * IN_SLOT / SLOTS
    load = Load(
        target,
        clients,
        ramp=round_trip,
        warm_up=2 * round_trip + third_party,
        measured=max(4.0, round_trip) if bench.quick else max(15.0, 2 * round_trip),
    )
    with bench.postgres.watch_connections() as seen:
        measured = bench.put(server, load)
    return measured, seen.most


def against(bench: Bench, kind: Kind, target: str, seconds: float) -> tuple[Measured, int]:
    """The same clients at another server. A new one for every run: requests of clients that
    have left still stand in such a server's queues and would be served first."""
    bench.say(f"{kind.name}, {CLIENTS} clients")
    load = Load(target, CLIENTS, ramp=1, warm_up=4, measured=seconds)
    with bench.start(kind) as server, bench.postgres.watch_connections() as seen:
        return bench.put(server, load), seen.most


def row(name: str, measured: Measured, connections: int, bounds: Bounds, **more: float) -> Row:
    values = {
        **more,
        "rate": measured.rate,
        "of_in_slot": measured.rate / bounds.per_second,
        "of_query": measured.rate / bounds.per_second_query_only,
        "connections": connections,
        "p50_ms": measured.p50_ms,
        "p99_ms": measured.p99_ms,
        "gateway_ms": measured.gateway_us() / 1000 if measured.gateway_cpu else None,
        "workers_ms": measured.workers_us() / 1000,
        "load": measured.load_busy,
        "origin": measured.origin_busy,
        "machine": measured.machine_busy,
        "seconds": measured.seconds,
        "ok": measured.ok,
    }
    # Only layby has a gateway.
    return Row(name, values, measured.complaint(), peer=not measured.gateway_cpu)


def _target(view: str, seconds: float, fetches: int | None = None) -> str:
    target = f"/{view}?ms={seconds * 1000:.0f}"
    return target if fetches is None else f"{target}&fetches={fetches}"


def _explained(bounds: Bounds) -> str:
    return (
        f"Alone, a request holds a slot for {bounds.in_slot * 1000:.2f} ms:"
        f" {bounds.per_second:.1f} requests/s is the in-slot bound. The query takes"
        f" {bounds.query * 1000:.2f} ms: {bounds.per_second_query_only:.1f} requests/s is the"
        " query-only bound. A share of the in-slot bound above 1 means that a request alone takes"
        " longer than among others: it finds caches cold and cores asleep."
    )


def _spread(table: Table) -> str:
    ratios = [float(each.values["of_in_slot"] or 0) for each in table.rows]
    return f"Lowest to highest share of the in-slot bound: {min(ratios):.3f} to {max(ratios):.3f}."
