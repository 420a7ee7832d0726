"""A PostgreSQL server of our own, and what it says about its clients."""

from __future__ import annotations

import glob
import os
import pwd
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg

from layby_bench.processes import Failed

QUERY = "SELECT pg_sleep(0.010)"
# Enough for the peers that need a connection for every waiting request.
MAX_CONNECTIONS = 1000


class Postgres:
    def __init__(self, sockets: Path) -> None:
        self.sockets = sockets

    def connect(self) -> psycopg.Connection[Any]:
        return psycopg.connect(
            host=str(self.sockets), user="postgres", dbname="postgres", autocommit=True
        )

    def version(self) -> str:
        with self.connect() as connection:
            return str(connection.info.server_version // 10000)

    def query_seconds(self, times: int) -> float:
        """How long the ten-millisecond query takes a client that has nothing else to do."""
        with self.connect() as connection:
            connection.execute(QUERY)
            begin = time.perf_counter()
            for _ in range(times):
                connection.execute(QUERY)
            return (time.perf_counter() - begin) / times

    @contextmanager
    def watch_connections(self) -> Iterator[Connections]:
        """Looks at the application's connections all the time until the block ends."""
        with self.connect() as connection:
            watcher = Connections(connection)
            thread = threading.Thread(target=watcher.watch)
            thread.start()
            try:
                yield watcher
            finally:
                watcher.over.set()
                thread.join()


class Connections:
    """The most connections that the application was seen to hold at one moment."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self.connection = connection
        self.most = 0
        self.over = threading.Event()

    def watch(self) -> None:
        while not self.over.wait(0.05):
            row = self.connection.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app'"
            ).fetchone()
            assert row is not None
            self.most = max(self.most, row[0])


@contextmanager
def running(directory: Path) -> Iterator[Postgres]:
    programs = _programs()
    data = directory / "postgres"
    data.mkdir()
    identity: dict[str, Any] = {}
    if os.geteuid() == 0:
        # The server refuses to run as root.
        user = next(name for name in ("postgres", "nobody") if _exists(name))
        group = pwd.getpwnam(user).pw_gid
        identity = {"user": user, "group": group, "extra_groups": []}
        directory.chmod(0o755)
        shutil.chown(data, user, group)
    options = (
        f"-c listen_addresses= -c unix_socket_directories={data} -c fsync=off"
        f" -c max_connections={MAX_CONNECTIONS}"
    )
    control = [f"{programs}/pg_ctl", "-D", f"{data}/data", "-w", "-s"]
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "cwd": "/", "check": True}
    initdb = [f"{programs}/initdb", "-D", f"{data}/data", "-U", "postgres", "-A", "trust"]
    subprocess.run([*initdb, "--no-sync"], **identity, **quiet)
    start = [*control, "-o", options, "-l", f"{data}/log", "start"]
    subprocess.run(start, **identity, **quiet)
    try:
        server = Postgres(data)
        with server.connect() as connection:
            connection.execute("CREATE ROLE app LOGIN")
        yield server
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], **identity, **quiet)


def _programs() -> Path:
    found = shutil.which("initdb")
    candidates = [found] if found else sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb"))
    if not candidates:
        raise Failed("no PostgreSQL server programs found (initdb, pg_ctl)")
    return Path(candidates[-1]).parent


def _exists(user: str) -> bool:
    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True
