"""`layby run --reload`: a changed file is served a moment later, and nobody notices the change."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from conftest import TO_THE_STUB
from support.client import Connection
from support.gateway import Gateway
from support.places import APPS, PACKAGE
from support.services import Services
from support.shop import Shop
from support.story import eventually, story


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A Django project of a few files, to be changed by the test."""
    folder = tmp_path / "project"
    shutil.copytree(APPS / "small", folder)
    return folder


@pytest.fixture
def gateway(project: Path, shop: Shop, tmp_path: Path) -> Iterator[Gateway]:
    environment = {**shop.environment, "DJANGO_SETTINGS_MODULE": "small.settings"}
    running = Gateway(
        "small.wsgi:application",
        folder=tmp_path,
        environment={**environment, "PYTHONPATH": str(PACKAGE)},
        configuration=TO_THE_STUB,
        flags=("--reload", "--slots=4", "--processes=2"),
        directory=project,
    )
    running.wait_ready()
    yield running
    running.end()


def change(file: Path, old: str, new: str) -> None:
    """As an editor does it: another file in the place of this one."""
    text = file.read_text()
    assert old in text
    fresh = file.with_suffix(".new")
    fresh.write_text(text.replace(old, new))
    fresh.replace(file)


class Visitors:
    """Clients that ask without a pause, and want 200 every time."""

    def __init__(self) -> None:
        self.seen: set[str] = set()
        self.over = False

    async def visit(self, gateway: Gateway, path: str) -> None:
        connection = await Connection.open(gateway.address)
        while not self.over:
            answer = await connection.ask("GET", path)
            assert answer.status == 200, answer.text
            self.seen.add(answer.text.strip())
            await asyncio.sleep(0.01)


@asynccontextmanager
async def visiting(gateway: Gateway, *paths: str) -> AsyncIterator[Visitors]:
    visitors = Visitors()
    async with asyncio.TaskGroup() as tasks:
        for path in paths * 3:
            tasks.create_task(visitors.visit(gateway, path))
        yield visitors
        visitors.over = True


@story(90)
async def test_code_settings_and_templates_are_reloaded_under_traffic(
    project: Path, gateway: Gateway, stub: Services
) -> None:
    stub.set(latency=100)
    parked = f"/parked?url={stub.url}/"
    old = set(gateway.worker_pids())
    async with visiting(gateway, "/page", parked) as visitors:

        async def seen(words: str) -> None:
            await eventually(f"nobody sees {words!r}", lambda: words in visitors.seen, 30)

        await seen("a page of the first kind")
        await seen("parked before")
        change(project / "small" / "views.py", "before", "after")
        await seen("parked after")
        change(project / "small" / "settings.py", "first", "second")
        await seen("a page of the second kind")
        change(project / "templates" / "page.html", "a page", "a leaf")
        await seen("a leaf of the second kind")
        # Two processes serve; that one shows what is new says nothing of the other.
        await eventually("something old stays", lambda: not set(gateway.worker_pids()) & old, 30)
    gateway.settles(4)
    assert gateway.metric("layby_worker_restarts_total", reason="crash") == 0


@story(90)
async def test_a_mistake_is_shown_and_the_old_code_serves_until_it_is_mended(
    project: Path, gateway: Gateway, stub: Services
) -> None:
    views = project / "small" / "views.py"
    old = gateway.worker_pids()
    async with visiting(gateway, f"/parked?url={stub.url}/") as visitors:
        change(views, "import layby", "import layby, (")
        await eventually(
            "no mistake is told",
            lambda: gateway.lines_with("replacement given up: the old worker stays"),
            30,
        )
        assert gateway.lines_with("SyntaxError")
        assert gateway.lines_with("reloading: small/views.py changed")
        assert gateway.worker_pids() == old
        change(views, "import layby, (", "import layby")
        change(views, "before", "mended")
        await eventually("it is not mended", lambda: "parked mended" in visitors.seen, 30)
        await eventually("an old one stays", lambda: not set(gateway.worker_pids()) & set(old), 30)
    gateway.settles(4)

    # Who watches dies, too; the next one watches on.
    dead = gateway.worker_pids()
    for pid in dead:
        os.kill(pid, signal.SIGKILL)
    await eventually("they stay", lambda: not set(gateway.worker_pids()) & set(dead), 20)
    gateway.settles(4)
    async with visiting(gateway, f"/parked?url={stub.url}/") as visitors:
        change(views, "mended", "new")
        await eventually("the change is not seen", lambda: "parked new" in visitors.seen, 30)
