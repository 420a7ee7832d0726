"""Put load on a server and read, over exactly the measured time, what it cost whom.

Every figure of a run that matters for its validity is in `Measured`: answers that were not
200, connections that failed, and how busy the load generator, the origin and the machine were.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from layby_bench import machine
from layby_bench.processes import Process
from layby_bench.servers import APP, Server

PROGRAMS = APP.parent.parent / "target" / "bench" / "release"
# Beyond this share of its one core, a load generator or an origin may be what is measured.
SATURATED = 0.70


@dataclass(frozen=True)
class Load:
    """Clients in a closed loop, on any core or on some only; times in seconds."""

    target: str
    clients: int
    measured: float
    ramp: float = 0.0
    warm_up: float = 1.0
    pause: float = 0.0
    cores: frozenset[int] | None = None


@dataclass(frozen=True)
class Refused:
    count: int
    p50_ms: float | None
    p99_ms: float | None


@dataclass(frozen=True)
class Measured:
    """What was seen while time was taken."""

    seconds: float
    ok: int
    errors: dict[str, int]
    # Of answers that were not 200.
    refused: Refused
    p50_ms: float | None
    p99_ms: float | None
    gateway_cpu: float
    workers_cpu: float
    load_busy: float
    origin_busy: float
    machine_busy: float

    @property
    def rate(self) -> float:
        return self.ok / self.seconds

    def gateway_us(self) -> float:
        return self.gateway_cpu / max(self.ok, 1) * 1e6

    def workers_us(self) -> float:
        return self.workers_cpu / max(self.ok, 1) * 1e6

    def us(self) -> float:
        return self.gateway_us() + self.workers_us()

    def wrong(self) -> str:
        """What the clients did not get; empty if every answer was right."""
        reasons = [f"{count} x {error}" for error, count in self.errors.items()]
        if not self.ok:
            reasons.append("no answer")
        return ", ".join(reasons)

    def complaint(self) -> str:
        """Why this must not be taken for what the server can do; empty if nothing says so."""
        reasons = [self.wrong()]
        if self.load_busy > SATURATED:
            reasons.append(f"load generator at {self.load_busy:.0%} of a core")
        if self.origin_busy > SATURATED:
            reasons.append(f"the server behind it at {self.origin_busy:.0%} of a core")
        return ", ".join(filter(None, reasons))


class Generator:
    """A load generator that runs until the `with` block ends or its time is over."""

    def __init__(self, server: Server, load: Load, directory: Path) -> None:
        times = (load.ramp, load.warm_up, load.measured, load.pause)
        command = [f"{PROGRAMS}/load", f"127.0.0.1:{server.port}", load.target, str(load.clients)]
        log = directory / f"load-{server.port}.log"
        command += map(str, times)
        self.process = Process(command, log, cores=load.cores, reads=True)


@dataclass
class Origin:
    """The third party: answers `/500` after 500 ms."""

    process: Process
    port: int

    @classmethod
    def start(cls, directory: Path) -> Origin:
        process = Process([f"{PROGRAMS}/origin"], directory / "origin.log", reads=True)
        return cls(process, int(process.line().rpartition(" ")[2]))


@dataclass
class Upstream:
    """What a proxy stands in front of: answers `/1024` at once with so many bytes, on a socket."""

    process: Process
    socket: Path

    @classmethod
    def start(cls, directory: Path, cores: frozenset[int] | None = None) -> Upstream:
        socket = directory / "upstream.sock"
        socket.unlink(missing_ok=True)
        command, log = [f"{PROGRAMS}/upstream", f"{socket}"], directory / "upstream.log"
        process = Process(command, log, cores=cores, reads=True)
        process.line()
        return cls(process, socket)


def put(server: Server, load: Load, origin: Origin | Upstream, directory: Path) -> Measured:
    """Put `load` on `server` and measure."""
    with Generator(server, load, directory).process as generator:
        generator.line()
        gateway, workers = server.gateway, server.workers

        def clocks() -> list[float]:
            groups = (gateway, workers, [generator.pid], [origin.process.pid])
            return [*map(machine.cpu_seconds_of, groups), machine.busy_seconds()]

        before = clocks()
        generator.line()
        spent = [end - begin for begin, end in zip(before, clocks(), strict=True)]
        counted = json.loads(generator.line())
    seconds = counted["seconds"]
    statuses = counted["statuses"]
    answers = {f"status {status}": n for status, n in statuses.items() if status != "200"}
    return Measured(
        seconds=seconds,
        ok=counted["ok"],
        errors=answers | counted["failures"],
        refused=Refused(
            sum(answers.values()), *map(counted.get, ("refused_p50_ms", "refused_p99_ms"))
        ),
        p50_ms=counted["p50_ms"],
        p99_ms=counted["p99_ms"],
        gateway_cpu=spent[0],
        workers_cpu=spent[1],
        load_busy=spent[2] / seconds,
        origin_busy=spent[3] / seconds,
        machine_busy=spent[4] / seconds / machine.cores(),
    )
