"""examples/tenants: no request ever sees another tenant's rows, however many are parked."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import defaultdict
from collections.abc import Callable
from urllib.parse import quote

import pytest

from conftest import TO_THE_STUB, Starter
from support.client import Answer, Connection, Gone
from support.gateway import Gateway
from support.origin import HoldingOrigin
from support.places import APPS, REPOSITORY
from support.postgres import Postgres, watching
from support.shop import Shop
from support.story import eventually, story

TENANTS = ("acme", "globex", "hooli", "initech", "umbrella")
SLOTS = 3
REQUESTS = 200

CONFIGURATION = f"""
[slots]
count = {SLOTS}
queue_timeout = "60s"  # on a busy machine, too

[workers]
processes = 1

{TO_THE_STUB}"""


def make_schemas(shop: Shop) -> None:
    """A table for each tenant. That of nobody takes what would otherwise be written astray."""
    with shop.server.connect(shop.database) as connection:
        for tenant in (*TENANTS, "no_tenant"):
            connection.execute(f"CREATE SCHEMA {tenant} AUTHORIZATION shop")
            connection.execute(
                f"CREATE TABLE {tenant}.notes (tenant text DEFAULT '{tenant}', reference text)"
            )
            connection.execute(f"ALTER TABLE {tenant}.notes OWNER TO shop")


def rows(shop: Shop, tenant: str) -> list[str]:
    return [reference for (reference,) in shop.query(f"SELECT reference FROM {tenant}.notes")]


@pytest.fixture
def tenants(shop: Shop, start: Starter) -> Callable[..., Gateway]:
    make_schemas(shop)

    def run(mode: str, app: str = "tenants.wsgi:application") -> Gateway:
        return start(
            CONFIGURATION,
            app=app,
            flags=(f"--mode={mode}",),
            DJANGO_SETTINGS_MODULE="tenants.settings",
            PYTHONPATH=f"{REPOSITORY / 'examples'}:{APPS}",
        )

    return run


class Traffic:
    """Requests of all tenants, each with a reference of its own, and what became of them."""

    def __init__(self, gateway: Gateway, path: str) -> None:
        self.gateway = gateway
        self.path = path
        self.answers: dict[str, Answer] = {}
        self.sent: defaultdict[str, set[str]] = defaultdict(set)

    async def ask(self, number: int, url: str, leaving: asyncio.Event) -> None:
        """One request; every tenth leaves, while it waits."""
        tenant = TENANTS[number % len(TENANTS)]
        reference = f"{tenant}-{number}"
        self.sent[tenant].add(reference)
        connection = await Connection.open(self.gateway.address)
        target = f"/{self.path}?reference={reference}&url={quote(url, safe='')}"
        connection.send("GET", target, [("host", f"{tenant}.example.com")])
        if number % 10 == 0:
            await leaving.wait()
            connection.reset()
            with contextlib.suppress(Gone):
                await connection.answer()
        else:
            self.answers[reference] = await connection.answer()

    async def run(self) -> None:
        """All at once, so that all are parked before the first one goes on."""
        leaving = asyncio.Event()
        numbers = list(range(REQUESTS))
        random.Random(7).shuffle(numbers)
        async with HoldingOrigin() as origin:
            asking = asyncio.gather(*(self.ask(n, origin.url, leaving) for n in numbers))
            await eventually("not all are parked", lambda: self.gateway.parked() == REQUESTS, 30)
            leaving.set()
            left = REQUESTS - REQUESTS // 10
            await eventually("not all have left", lambda: self.gateway.parked() == left, 30)
            origin.release()
            await asking

    def strangers(self) -> list[tuple[str, str]]:
        """Rows that a request was shown and that are another tenant's: its reference, theirs."""
        return [
            (reference, f"{tenant}: {row}")
            for reference, answer in self.answers.items()
            for tenant, row in answer.json()["rows"]
            if tenant != reference.partition("-")[0] or row not in self.sent[tenant]
        ]


@pytest.mark.parametrize(
    ("mode", "path"), [("coroutine", "note"), ("greenlet", "note"), ("greenlet", "sync-note")]
)
@story(120)
async def test_every_request_sees_the_rows_of_its_own_tenant_only(
    tenants: Callable[..., Gateway], shop: Shop, postgres: Postgres, mode: str, path: str
) -> None:
    gateway = tenants(mode)
    traffic = Traffic(gateway, path)
    with watching(postgres) as watch:
        await traffic.run()
    assert len(traffic.answers) == REQUESTS - REQUESTS // 10
    for reference, answer in traffic.answers.items():
        assert answer.status == 200, (reference, answer.text[:500])
        assert [reference.partition("-")[0], reference] in answer.json()["rows"]
    assert traffic.strangers() == []
    # The ledger: what each wrote is with its tenant, once, and nothing is anywhere else.
    for tenant in TENANTS:
        assert sorted(rows(shop, tenant)) == sorted(traffic.sent[tenant])
    assert rows(shop, "no_tenant") == []
    assert gateway.metric("layby_waits_in_place_total") == 0
    assert watch.most_slots <= SLOTS
    gateway.settles(SLOTS)


@pytest.mark.parametrize("mode", ["coroutine", "greenlet"])
@story(120)
async def test_without_the_hooks_they_would_see_those_of_others(
    tenants: Callable[..., Gateway], mode: str
) -> None:
    traffic = Traffic(tenants(mode, app="unhooked"), "note")
    await traffic.run()
    assert traffic.strangers()
