"""The example shop on PostgreSQL, with the tests' own app `lab` beside its pages."""

from __future__ import annotations

import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from support.places import APPS, PACKAGE, SHOP, environment
from support.postgres import Postgres

TEMPLATE = "shop_template"
USERS = 40
PASSWORD = "demo"


@dataclass
class Shop:
    """The shop on a database of its own."""

    server: Postgres
    data: Path
    database: str
    services: str = "http://127.0.0.1:9"  # nobody there

    @property
    def url(self) -> str:
        return self.server.url(self.database)

    @property
    def environment(self) -> dict[str, str]:
        return environment(
            DJANGO_SETTINGS_MODULE="lab.settings",
            DATABASE_URL=self.url,
            SHOP_DATA=str(self.data),
            SHOP_SERVICES=self.services,
            # This repository's package, whichever is installed.
            PYTHONPATH=f"{PACKAGE}:{SHOP}:{APPS}",
        )

    def manage(self, *command: str) -> None:
        subprocess.run(
            [sys.executable, SHOP / "manage.py", *command],
            check=True,
            env=self.environment,
            cwd=SHOP,
        )

    def query(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """Asked by a superuser, who does not count as the application."""
        with self.server.connect(self.database) as connection:
            return connection.execute(statement, values).fetchall()

    def allow_connections(self, most: int) -> None:
        """From here on PostgreSQL itself refuses one more. Sampling could miss it."""
        with self.server.connect() as connection:
            connection.execute(f"ALTER DATABASE {self.database} CONNECTION LIMIT {most}")

    def notes(self, prefix: str) -> dict[str, list[str]]:
        """What the views of the lab wrote down, in order, by reference."""
        found: defaultdict[str, list[str]] = defaultdict(list)
        rows = self.query(
            "SELECT reference, event FROM lab_trace WHERE reference LIKE %s ORDER BY id",
            f"{prefix}%",
        )
        for reference, event in rows:
            found[reference].append(event)
        return dict(found)

    def ledger(self, prefix: str) -> dict[str, Traces]:
        """What checkouts left behind, by reference."""
        found: defaultdict[str, Traces] = defaultdict(Traces)
        like = f"{prefix}%"
        rows = self.query(
            "SELECT reference, event FROM store_ledger WHERE reference LIKE %s ORDER BY id", like
        )
        for reference, event in rows:
            found[reference].events.append(event)
        rows = self.query("SELECT reference, pid FROM lab_trace WHERE reference LIKE %s", like)
        for reference, pid in rows:
            found[reference].pids.add(pid)
        rows = self.query("SELECT reference, status FROM store_order WHERE reference LIKE %s", like)
        for reference, status in rows:
            found[reference].orders.append(status)
        return dict(found)


@dataclass
class Traces:
    events: list[str] = field(default_factory=list)
    orders: list[str] = field(default_factory=list)
    # Of the worker processes that wrote the events.
    pids: set[int] = field(default_factory=set)

    @property
    def finished(self) -> bool:
        return "finished" in self.events


def make_template(server: Postgres, data: Path) -> None:
    """The database that all tests get copies of: migrated, with products and forty users."""
    with server.connect() as connection:
        connection.execute(f"CREATE DATABASE {TEMPLATE} OWNER shop")
    template = Shop(server, data, TEMPLATE)
    template.manage("migrate", "--run-syncdb", "--verbosity=0")
    template.manage("seed", "--no-migrate", "--verbosity=0")
    with psycopg.connect(template.url) as connection:
        row = connection.execute("SELECT count(*) FROM auth_user").fetchone()
        assert row == (USERS + 1,), row
