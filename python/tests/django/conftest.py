"""Sets up the test project once per process, on SQLite and, if it can, on PostgreSQL."""

from __future__ import annotations

import glob
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
USERS = [f"user{number}" for number in range(40)]


def _postgres_programs() -> Path | None:
    found = shutil.which("initdb")
    candidates = [found] if found else sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb"))
    return Path(candidates[-1]).parent if candidates else None


PG_PROGRAMS = _postgres_programs()


def pytest_configure(config: pytest.Config) -> None:
    import django

    directory = tempfile.mkdtemp(prefix="layby-django-")
    config.add_cleanup(lambda: shutil.rmtree(directory, ignore_errors=True))
    os.chmod(directory, 0o755)
    os.environ["TEST_DIR"] = directory
    os.environ["DJANGO_SETTINGS_MODULE"] = "project.settings"
    if PG_PROGRAMS is not None:
        os.environ["TEST_PG_HOST"] = directory
    sys.path.insert(0, str(HERE))
    django.setup()


@pytest.fixture(scope="session")
def database() -> None:
    """The tables and users of the project, on SQLite."""
    from django.contrib.auth.models import User
    from django.core.management import call_command
    from django.db import connection

    call_command("migrate", run_syncdb=True, verbosity=0)
    with connection.cursor() as cursor:
        cursor.execute("PRAGMA journal_mode=WAL")
    for name in USERS:
        User.objects.create_user(name, password="secret")
    _fill("default")


def _fill(using: str) -> None:
    from project.models import Order

    Order.objects.using(using).bulk_create(Order(owner="fixture", state="new") for _ in range(9))


@pytest.fixture(scope="session")
def postgres(database: None) -> Iterator[str]:
    """A PostgreSQL server of our own with the project's tables; its alias."""
    if PG_PROGRAMS is None:
        pytest.skip("no PostgreSQL server programs on this machine")
    from django.core.management import call_command

    sockets = Path(os.environ["TEST_PG_HOST"])
    data = sockets / "pg"
    data.mkdir()
    # initdb refuses to run as root.
    identity: dict[str, Any] = {}
    if os.geteuid() == 0:
        identity = {"user": "nobody", "group": "nogroup"}
        shutil.chown(data, "nobody", "nogroup")
        shutil.chown(sockets, "nobody", "nogroup")
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "cwd": "/"}
    subprocess.run(
        [PG_PROGRAMS / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "--no-sync"],
        check=True,
        **identity,
        **quiet,
    )
    options = f"-c listen_addresses= -c unix_socket_directories={sockets} -c fsync=off"
    control = [PG_PROGRAMS / "pg_ctl", "-D", data, "-w"]
    start = [*control, "-o", options, "-l", data / "log", "start"]
    subprocess.run(start, check=True, **identity, **quiet)
    try:
        call_command("migrate", database="pg", run_syncdb=True, verbosity=0)
        _fill("pg")
        yield "pg"
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], check=True, **identity, **quiet)


@pytest.fixture(scope="session")
def app(database: None) -> Any:
    """The project as a coroutine application, as a worker builds it."""
    from django.core.wsgi import get_wsgi_application

    from layby.django import application

    return application(get_wsgi_application())


@pytest.fixture
def slots(app: Any) -> Iterator[Any]:
    """Four slots that run the project."""
    from stepper import Slots

    with Slots(app, 4) as running:
        yield running


@pytest.fixture
def build(database: None) -> Iterator[Any]:
    """Builds an application under other settings, and slots that run it, for one test."""
    from django.core.handlers.wsgi import WSGIHandler
    from django.test import override_settings
    from stepper import Slots

    from layby.django import application

    with ExitStack() as open_things:

        def build(**settings: Any) -> Slots:
            open_things.enter_context(override_settings(**settings))
            return open_things.enter_context(Slots(application(WSGIHandler()), 2))

        yield build
