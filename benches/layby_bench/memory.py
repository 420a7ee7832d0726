"""What a request that waits costs in memory, and what it costs everybody else in time."""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass

from layby_bench import machine, servers
from layby_bench.bench import Bench
from layby_bench.load import Generator, Load, Measured
from layby_bench.processes import Failed
from layby_bench.report import Column, Row, Table
from layby_bench.servers import Server

# Each in a mode, with its view.
PARKED = (
    (1000, "coroutine", "wait"),
    (5000, "coroutine", "wait"),
    (10_000, "coroutine", "wait"),
    # In two processes: beyond 1000 in each, requests wait in place.
    (1000, "greenlet", "wait-plain"),
    (2000, "greenlet", "wait-plain"),
)
IDLE = 5000
# Long enough that none of them resumes while we look.
THIRD_PARTY = 120
SETTLED_WITHIN = 60.0

COLUMNS = [
    Column("gateway_kib", "gateway KiB each", ".1f"),
    Column("workers_kib", "workers KiB each", ".1f"),
    Column("kib", "together KiB each", ".1f"),
    Column("p50_ms", "page p50 ms", ".2f"),
    Column("p99_ms", "page p99 ms", ".2f"),
    Column("idle_p50_ms", "idle p50 ms", ".2f"),
    Column("idle_p99_ms", "idle p99 ms", ".2f"),
]


@dataclass(frozen=True)
class Resident:
    gateway: int
    workers: int

    @classmethod
    def of(cls, server: Server) -> Resident:
        sizes = map(machine.resident_bytes, (server.gateway, server.workers))
        return cls(*sizes)


def memory(bench: Bench) -> Table:
    table = Table(
        "memory",
        "Requests that wait",
        f"layby with {servers.SLOTS} slots in {servers.layby_processes()} processes. Growth of"
        " resident memory for each request parked in a Django view with the full middleware, its"
        " client's connection and its fetch's included, and for each client that keeps its"
        " connection open after one request. Meanwhile one client opens a page that needs no"
        " third party, 100 times a second: its latency, and the same on the same gateway before"
        " anything waited.",
        COLUMNS,
    )
    # Each takes two descriptors of the gateway, which has some for itself.
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted, mode, view in PARKED:
        count = min(wanted, (descriptors - 1000) // 2)
        waiting = Load(f"/{view}?ms={THIRD_PARTY * 1000}", count, ramp=count / 1000, measured=0)
        name = f"{count} parked requests, {mode}"
        table.add(_grown(bench, name, waiting, mode=mode, parked=count))
    # Each asks once, then pauses for longer than we look.
    idle = Load("/hello", IDLE, ramp=IDLE / 1000, measured=0, pause=THIRD_PARTY)
    table.add(_grown(bench, f"{IDLE} idle connections", idle, mode="coroutine", parked=0))
    return table


def _grown(bench: Bench, name: str, load: Load, *, mode: str, parked: int) -> Row:
    """What `load` adds to a gateway that has served before."""
    bench.say(name)
    page = Load("/hello", clients=1, measured=3 if bench.quick else 10, pause=0.01)
    with bench.start(servers.layby(views="views_modes", mode=mode)) as server:
        # Allocators and interpreters grow with the first requests, whether anything waits or not.
        bench.put(server, Load("/hello", clients=64, measured=2))
        alone = bench.put(server, page)
        before = Resident.of(server)
        held = Load(load.target, load.clients, THIRD_PARTY, load.ramp, 0, load.pause)
        with Generator(server, held, bench.directory).process:
            wrong = _settle(server, load.clients, parked)
            after = Resident.of(server)
            meanwhile = bench.put(server, page)
    gateway = (after.gateway - before.gateway) / 1024 / load.clients
    workers = (after.workers - before.workers) / 1024 / load.clients
    values = {
        "gateway_kib": gateway,
        "workers_kib": workers,
        "kib": gateway + workers,
        "p50_ms": meanwhile.p50_ms,
        "p99_ms": meanwhile.p99_ms,
        "idle_p50_ms": alone.p50_ms,
        "idle_p99_ms": alone.p99_ms,
    }
    complaints = [wrong, *map(Measured.wrong, (alone, meanwhile))]
    return Row(name, values, ", ".join(each for each in complaints if each))


def _settle(server: Server, clients: int, parked: int) -> str:
    """Waits until all clients are where they are meant to be; says what went wrong."""
    give_up = time.monotonic() + SETTLED_WITHIN
    while time.monotonic() < give_up:
        metrics = server.metrics()
        if metrics["layby_parked_requests"] == parked:
            open_files = metrics["process_open_fds"]
            if open_files < clients:
                continue
            # The gateway and Python give back what was only needed on the way.
            time.sleep(1)
            return ""
        time.sleep(0.1)
    seen = server.metrics()["layby_parked_requests"]
    raise Failed(f"{seen:.0f} of {parked} requests were parked")
