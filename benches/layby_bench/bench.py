"""What every benchmark is given: the database, the third party, a folder, and how long to take."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from layby_bench.load import Load, Measured, Origin, put
from layby_bench.postgres import Postgres
from layby_bench.servers import Kind, Server


@dataclass(frozen=True)
class Bench:
    postgres: Postgres
    origin: Origin
    directory: Path
    # A quick run shows that everything works and roughly where it stands.
    quick: bool

    def start(self, kind: Kind) -> Server:
        environment = {
            "BENCH_DATABASE": str(self.postgres.sockets),
            "BENCH_ORIGIN": str(self.origin.port),
            "DJANGO_SETTINGS_MODULE": "settings",
        }
        return Server(kind, self.directory, environment)

    def put(self, server: Server, load: Load) -> Measured:
        measured = put(server, load, self.origin, self.directory)
        if measured.errors:
            self.say(f"{server.kind.name}: {measured.wrong()}; its last words")
            print(server.process.last_words(), file=sys.stderr, flush=True)
        return measured

    def say(self, what: str) -> None:
        print(f"bench: {what} ...", flush=True)
