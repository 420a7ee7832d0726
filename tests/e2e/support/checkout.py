"""Checkouts through the shop's API, and what must be true of them."""

from __future__ import annotations

import asyncio
import json

from support.client import Answer, Connection
from support.gateway import Gateway
from support.services import Services
from support.shop import Shop
from support.story import eventually

TOTAL = "37.90"
JSON = [("content-type", "application/json")]


def purchase(reference: str, **more: object) -> bytes:
    """The body of `POST /api/checkout`: a teapot and two cups."""
    lines = [{"product": "teapot", "quantity": 1}, {"product": "cup", "quantity": 2}]
    body = {"reference": reference, "token": f"token of {reference}", "name": "Ada", "zip": "80331"}
    return json.dumps({**body, "lines": lines, **more}).encode()


async def check_out(
    connection: Connection, reference: str, path: str = "/api/checkout", **more: object
) -> Answer:
    return await connection.ask("POST", path, JSON, purchase(reference, **more))


def assert_right(answer: Answer, reference: str) -> None:
    """The answer is that of a paid order, and of this one."""
    assert answer.status == 200, (reference, answer.status, answer.text[:300])
    seen = answer.json()
    wanted = {
        "reference": reference,
        "token": f"token of {reference}",
        "status": "paid",
        "total": TOTAL,
        "messages": ["Thank you, Ada! It is paid."],
    }
    assert {key: seen.get(key) for key in wanted} == wanted, reference


def assert_each_ran_once(shop: Shop, stub: Services, prefix: str, references: set[str]) -> None:
    """In the shop's database and at the payment service, each of these and nothing else."""
    ledger = shop.ledger(prefix)
    assert set(ledger) == references
    for reference, traces in ledger.items():
        assert traces.events == ["started", "finished"], (reference, traces)
        assert traces.orders == ["paid"], (reference, traces)
    charges = {name: count for name, count in stub.charges().items() if name.startswith(prefix)}
    assert charges == dict.fromkeys(references, 1)


class Buying:
    """Clients that buy without a pause, each checking every answer."""

    def __init__(self, gateway: Gateway, prefix: str, clients: int) -> None:
        self.gateway = gateway
        self.prefix = prefix
        self.references: set[str] = set()
        self.answered = 0
        self.over = asyncio.Event()
        self.tasks = [asyncio.create_task(self.buy(client)) for client in range(clients)]

    async def buy(self, client: int) -> None:
        connection = await Connection.open(self.gateway.address)
        turn = 0
        while not self.over.is_set():
            reference = f"{self.prefix}{client}-{turn}"
            self.references.add(reference)
            assert_right(await check_out(connection, reference), reference)
            self.answered += 1
            turn += 1

    async def more(self, count: int, seconds: float = 30) -> None:
        """Waits until so many more are answered; at once for who has failed."""
        wanted = self.answered + count

        def bought() -> bool:
            return self.answered >= wanted or any(task.done() for task in self.tasks)

        await eventually(f"{count} more are not answered", bought, seconds)

    async def end(self) -> None:
        self.over.set()
        await asyncio.gather(*self.tasks)
