"""A throw-away PostgreSQL server, a fresh database for every test, and who is connected.

The application connects as `shop`, which is no superuser and which nobody else uses: every
connection of that role is the application's (or the gateway's, when it sizes its slots).
"""

from __future__ import annotations

import glob
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, LiteralString
from urllib.parse import quote

import psycopg
import pytest

ROLE = "shop"


def programs() -> Path:
    """The folder of the newest server programs."""
    installed = sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb"))
    found = installed[-1] if installed else shutil.which("initdb")
    if not found:
        pytest.skip("no PostgreSQL server programs on this machine")
    return Path(found).parent


class Postgres:
    """The server. It listens on a socket in `folder` only."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = programs()
        self.data = folder / "data"
        self.data.mkdir()
        # The server refuses to run as root.
        self.identity: dict[str, Any] = {}
        if os.geteuid() == 0:
            self.identity = {"user": "nobody", "group": "nogroup"}
            for path in (folder, self.data):
                shutil.chown(path, "nobody", "nogroup")
        self.made = 0

    def start(self) -> None:
        # Small segments: what is written here is thrown away in a few minutes.
        self.run("initdb", "-U", "postgres", "-A", "trust", "--no-sync", "--wal-segsize=1")
        options = (
            f"-c listen_addresses= -c unix_socket_directories={self.folder} -c fsync=off"
            " -c max_connections=60 -c min_wal_size=8MB -c max_wal_size=32MB"
        )
        self.run("pg_ctl", "-w", "-o", options, "-l", str(self.data / "log"), "start")
        self.execute(f"CREATE ROLE {ROLE} LOGIN")

    def stop(self) -> None:
        self.run("pg_ctl", "-w", "-m", "immediate", "stop")

    def run(self, program: str, *arguments: str) -> None:
        command: list[str | Path] = [self.bin / program, "-D", self.data, *arguments]
        subprocess.run(command, check=True, cwd="/", stdout=subprocess.DEVNULL, **self.identity)

    def connect(self, database: str = "postgres") -> psycopg.Connection[Any]:
        """As a superuser."""
        return psycopg.connect(
            host=str(self.folder), user="postgres", dbname=database, autocommit=True
        )

    def execute(self, statement: LiteralString) -> None:
        with self.connect() as connection:
            connection.execute(statement)

    def give_up_queries_of_the_dead(self) -> None:
        """From here on the server notices soon that a client is gone whose query it runs."""
        self.execute("ALTER ROLE shop SET client_connection_check_interval = '50ms'")

    def url(self, database: str) -> str:
        return f"postgres://{ROLE}@{quote(str(self.folder), safe='')}/{database}"

    def fresh(self, template: str = "template1") -> str:
        """A new database of the application's role; its name."""
        self.made += 1
        name = f"shop{self.made}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template} OWNER {ROLE}")
        return name


class Watch:
    """The most connections of the application that were open at once, by sampling."""

    def __init__(self, server: Postgres, every: float = 0.004) -> None:
        self.every = every  # seconds
        self.connection = server.connect()
        self.over = threading.Event()
        self.samples = 0
        # Named after slots, and all of the application's role.
        self.most_slots = 0
        self.most = 0
        self.at_the_most: list[str] = []

    def sample(self) -> None:
        rows = self.connection.execute(
            "SELECT application_name FROM pg_stat_activity"
            " WHERE usename = %s AND backend_type = 'client backend'",
            [ROLE],
        ).fetchall()
        names = sorted(name for (name,) in rows)
        self.samples += 1
        self.most_slots = max(self.most_slots, sum("layby slot " in name for name in names))
        if len(names) >= self.most:
            # The last such sample: a connection has its name a moment after it is there.
            self.most = len(names)
            self.at_the_most = names

    def run(self) -> None:
        while not self.over.wait(self.every):
            self.sample()


@contextmanager
def watching(server: Postgres, every: float = 0.004) -> Iterator[Watch]:
    watch = Watch(server, every)
    thread = threading.Thread(target=watch.run, daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        watch.over.set()
        thread.join()
        watch.connection.close()
