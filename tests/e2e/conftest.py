"""A PostgreSQL server for the session; the shop, its services and a gateway for each test."""

from __future__ import annotations

import resource
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import pytest

from support.gateway import Gateway
from support.places import BINARY
from support.postgres import Postgres
from support.services import Services, services
from support.shop import TEMPLATE, Shop, make_template


def pytest_configure(config: pytest.Config) -> None:
    # Inherited by everything that we start: 5 000 requests need a descriptor each, or more.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if not BINARY.exists():
        pytest.exit(f"there is no {BINARY}; build it with: cargo build")


@pytest.fixture(scope="session")
def root() -> Iterator[Path]:
    """A short path, as Unix sockets need one, that other users may enter, as PostgreSQL must.

    In memory if there is room: a few hundred MiB that are thrown away at once.
    """
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > 4 << 30
    folder = Path(tempfile.mkdtemp(prefix="layby-e2e-", dir=memory if roomy else None))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres(root: Path) -> Iterator[Postgres]:
    folder = root / "pg"
    folder.mkdir()
    server = Postgres(folder)
    server.start()
    try:
        make_template(server, root)
        yield server
    finally:
        server.stop()


@pytest.fixture
def stub(tmp_path: Path) -> Iterator[Services]:
    """The third parties, on 127.0.0.1."""
    with services(tmp_path) as running:
        yield running


@pytest.fixture
def shop(postgres: Postgres, root: Path, stub: Services) -> Shop:
    """The shop on a fresh database, its services being the stub. Not running yet."""
    return Shop(postgres, root, postgres.fresh(TEMPLATE), stub.url)


class Starter(Protocol):
    def __call__(
        self,
        configuration: str = ...,
        *,
        app: str = ...,
        flags: tuple[str, ...] = ...,
        ready: bool = ...,
        **environment: str,
    ) -> Gateway: ...


# The services of the tests are on loopback, which has to be named.
TO_THE_STUB = '[outbound]\nallow = ["127.0.0.1"]\n'


@pytest.fixture
def start(shop: Shop, tmp_path: Path) -> Iterator[Starter]:
    """Starts gateways in front of the shop, or of another app; they end with the test."""
    with ExitStack() as running:

        def starter(
            configuration: str = TO_THE_STUB,
            *,
            app: str = "shop.wsgi:application",
            flags: tuple[str, ...] = (),
            ready: bool = True,
            **environment: str,
        ) -> Gateway:
            gateway = Gateway(
                app,
                folder=Path(tempfile.mkdtemp(dir=tmp_path)),
                environment={**shop.environment, **environment},
                configuration=configuration,
                flags=flags,
            )
            running.callback(gateway.end)
            if ready:
                gateway.wait_ready()
            return gateway

        yield starter
