"""Runs the benchmarks that are asked for, or all."""

from __future__ import annotations

import argparse
import datetime
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from layby_bench import (
    connections,
    hello,
    machine,
    memory,
    overload,
    postgres,
    proxy,
    report,
    scenario,
)
from layby_bench.bench import Bench
from layby_bench.load import Origin
from layby_bench.postgres import Postgres
from layby_bench.processes import Failed
from layby_bench.report import Table
from layby_bench.servers import APP, GATEWAY

# For 10 000 parked requests, with some to spare.
DESCRIPTORS = 32_768

DOCUMENT = APP.parent.parent / "docs" / "benchmarks.md"

BENCHMARKS: dict[str, list[Callable[[Bench], Table]]] = {
    "main": [scenario.main],
    "latency": [scenario.latency],
    "fanout": [scenario.fanout],
    "modes": [scenario.modes],
    "hello": [hello.wsgi, hello.django],
    "memory": [memory.memory],
    "proxy": [proxy.proxy],
    "connections": [connections.idle, connections.busy],
    "overload": [overload.overload],
}


def main() -> int:
    options = parse()
    allow_descriptors()
    begun = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="layby-bench-") as directory:
            tables, heading = run(Path(directory), options.names, options.quick)
    except Failed as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    for paragraph in [*heading, *(table.markdown() for table in tables)]:
        print(f"\n{paragraph}")
    print(f"\nbench: took {(time.monotonic() - begun) / 60:.1f} minutes")
    # What a peer gets wrong is a result; what layby gets wrong is not one to publish.
    ours = [row for table in tables for row in table.rows if not row.peer]
    if any(row.invalid for row in ours):
        print("bench: not all of layby's rows are valid", file=sys.stderr)
        return 1
    if options.write:
        DOCUMENT.write_text(report.document(heading, tables))
        print("bench: wrote docs/benchmarks.md")
    return 0


def allow_descriptors() -> None:
    """A descriptor for each client, and one for each fetch."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, max(hard, DESCRIPTORS)))
    except (ValueError, PermissionError):
        # Only root may raise the bound; with fewer, a row that needs more says that it failed.
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benches/run.py", description="Measure layby.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of: {', '.join(BENCHMARKS)}")
    parser.add_argument("--quick", action="store_true", help="a short run, to see that it works")
    parser.add_argument("--write", action="store_true", help="put results into docs/benchmarks.md")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"no such benchmark: {', '.join(unknown)}")
    if options.write and options.names:
        parser.error("--write is for a whole run, without names")
    options.names = options.names or list(BENCHMARKS)
    return options


def run(directory: Path, names: list[str], quick: bool) -> tuple[list[Table], list[str]]:
    # With other work on the same cores, figures wobble: whoever reads them should know.
    busy = machine.busy(2.0)
    with postgres.running(directory) as database:
        origin = Origin.start(directory)
        with origin.process:
            bench = Bench(database, origin, directory, quick)
            tables = [benchmark(bench) for name in names for benchmark in BENCHMARKS[name]]
        return tables, heading(database, busy, quick)


def heading(database: Postgres, busy: float, quick: bool) -> list[str]:
    """When, where and with what; no more of the machine than its size."""
    gateway = subprocess.run([GATEWAY, "--version"], capture_output=True, text=True, check=True)
    peers = ("Django", "gunicorn", "granian", "uvicorn", "httpx", "requests", "psycopg")
    versions = ", ".join(f"{name} {version(name)}" for name in peers)
    return [
        f"{datetime.date.today()}; {machine.cores()} cores, {machine.memory_gib()} GiB,"
        f" {platform.system()} {platform.machine()}; everything on this one machine: clients,"
        f" server, database and third party. Before it began the machine was {busy:.0%} busy.",
        f"{gateway.stdout.strip()}, Python {platform.python_version()}, PostgreSQL"
        f" {database.version()}, {versions}.",
        *(["A short run (`--quick`): each row was measured for a few seconds only."] * quick),
    ]


if __name__ == "__main__":
    sys.exit(main())
