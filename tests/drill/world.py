"""What the drill is run on: PostgreSQL, the shop, its third parties, and a gateway to hurt."""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from support.gateway import Gateway, resident
from support.postgres import Postgres, Watch, watching
from support.program import until
from support.services import Services, services
from support.shop import TEMPLATE, Shop, make_template

SLOTS = 8
PROCESSES = 3
# Bytes that the spool folder has room for.
SPOOL = 48 << 20
# A worker that leaks is replaced past this, and starts at about 60 MiB.
WORKER_MEMORY = "160MiB"
REQUEST_TIMEOUT = 12.0  # seconds
OVERDUE_GRACE = 2.0

CONFIGURATION = f"""
drain_timeout = "60s"
max_body = "64MiB"
spool_dir = "{{spool}}"
head_timeout = "3s"
stall_timeout = "4s"
min_rate = "64KiB"

[slots]
count = {SLOTS}
queue_timeout = "10s"
request_timeout = "{REQUEST_TIMEOUT:g}s"
overdue_grace = "{OVERDUE_GRACE:g}s"

[workers]
processes = {PROCESSES}
max_memory = "{WORKER_MEMORY}"

[outbound]
allow = ["127.0.0.1"]
"""


@dataclass
class Spare:
    """What the gateway had to itself when nothing was wrong yet."""

    descriptors: int
    memory: int


@dataclass
class World:
    folder: Path
    spool: Path
    # The spool folder is a file system of its own, which can be filled.
    small_disk: bool
    postgres: Postgres
    stub: Services
    shop: Shop
    gateway: Gateway = field(init=False)
    # Worker processes that were killed, by us or by the gateway for what we did to them.
    killed: set[int] = field(default_factory=set)
    gateways: int = 0

    def start_gateway(self, *, port: int | None = None) -> None:
        self.gateways += 1
        folder = self.folder / f"gateway{self.gateways}"
        folder.mkdir()
        self.gateway = Gateway(
            "shop.wsgi:application",
            folder=folder,
            environment={**self.shop.environment, "SHOP_SERVICES_TIMEOUT": "3"},
            configuration=CONFIGURATION.format(spool=self.spool),
            flags=() if port is None else (f"--listen=127.0.0.1:{port}",),
        )
        if port is not None:
            self.gateway.port, self.gateway.address = port, ("127.0.0.1", port)
        self.gateway.wait_ready()

    def spare(self) -> Spare:
        # It keeps connections to origins for a while, on purpose.
        own = self.gateway.descriptors() - connections_to(self.stub.port)
        return Spare(own, resident(self.gateway.pid))

    async def settles(self, seconds: float = 60) -> None:
        await asyncio.to_thread(self.gateway.settles, SLOTS, seconds)

    def watching(self) -> Iterator[Watch]:
        return watching(self.postgres, every=0.01)


@contextmanager
def world(*, gateway: bool = True) -> Iterator[World]:
    # Inherited by all: floods need many.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    memory = Path("/dev/shm")
    with ExitStack() as stack:
        # A short path, as Unix sockets need one, that PostgreSQL's user may enter.
        folder = Path(
            tempfile.mkdtemp(prefix="layby-drill-", dir=memory if memory.is_dir() else None)
        )
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        folder.chmod(0o755)
        spool = folder / "spool"
        spool.mkdir()
        small_disk = mounted(spool, stack)
        (folder / "pg").mkdir()
        postgres = Postgres(folder / "pg")
        postgres.start()
        stack.callback(postgres.stop)
        make_template(postgres, folder)
        stub = stack.enter_context(services(folder))
        stub.set(latency=300)
        shop = Shop(postgres, folder, postgres.fresh(TEMPLATE), stub.url)
        # PostgreSQL itself refuses one more; sampling could miss it.
        shop.allow_connections(SLOTS)
        made = World(folder, spool, small_disk, postgres, stub, shop)
        if gateway:
            made.start_gateway()
            stack.callback(lambda: made.gateway.end())
        yield made


def mounted(folder: Path, stack: ExitStack) -> bool:
    """A small file system of its own at `folder`, where we may."""
    if os.geteuid() != 0:
        return False
    command = ["mount", "-t", "tmpfs", "-o", f"size={SPOOL}", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        return False
    stack.callback(subprocess.run, ["umount", "-l", str(folder)], check=False)
    return True


def connections_to(port: int) -> int:
    """Connections on this machine to a port of its own, counted at the end that made them."""
    rows = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
    return sum(row[2].endswith(f":{port:04X}") and row[3] == "01" for row in rows)


async def eventually_dead(pid: int, seconds: float) -> None:
    def dead() -> bool:
        return not Path(f"/proc/{pid}").exists()

    await asyncio.to_thread(until, f"process {pid} is still there", dead, seconds)
