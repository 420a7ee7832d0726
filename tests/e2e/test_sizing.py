"""As many slots as the database allows, and who is who among its connections."""

from __future__ import annotations

import asyncio

from conftest import TO_THE_STUB, Starter
from support.checkout import assert_right, check_out
from support.client import Connection
from support.postgres import ROLE, Postgres, watching
from support.services import Services
from support.shop import Shop
from support.story import story


def configuration(count: int | str, shop: Shop) -> str:
    count = f'"{count}"' if isinstance(count, str) else count
    slots = f'[slots]\ncount = {count}\nqueue_timeout = "30s"\n'
    return f'{slots}\n{TO_THE_STUB}\n[database]\nurl = "{shop.url}"\n'


@story(90)
async def test_auto_takes_what_the_database_allows_and_every_slot_has_its_connection(
    shop: Shop, stub: Services, start: Starter, postgres: Postgres
) -> None:
    shop.allow_connections(12)
    gateway = start(configuration("auto", shop))
    assert gateway.lines_with(f"database {shop.database}: 12", "12 \N{MINUS SIGN} head-room 2 = 10")
    assert gateway.status()["slots"]["count"] == 10

    stub.set(latency=200)
    with watching(postgres) as watch:

        async def buy(client: int) -> None:
            connection = await Connection.open(gateway.address)
            for turn in range(4):
                reference = f"sized-{client}-{turn}"
                assert_right(await check_out(connection, reference), reference)

        await asyncio.gather(*(buy(client) for client in range(60)))

    assert watch.at_the_most == [f"layby slot {slot}" for slot in range(10)]
    gateway.settles(10)


def test_a_fixed_count_that_the_database_refuses_is_warned_of_with_the_numbers(
    shop: Shop, start: Starter
) -> None:
    shop.allow_connections(6)
    gateway = start(configuration(8, shop))
    (line,) = gateway.lines_with("WARN", "slots.count is 8")
    assert "allows 6 connections" in line
    assert gateway.status()["slots"]["count"] == 8


def test_a_database_that_cannot_be_asked_is_told_in_one_line_without_its_password(
    shop: Shop, start: Starter
) -> None:
    url = f"postgres://{ROLE}:opensesame@127.0.0.1:9/shop"
    text = f'[slots]\ncount = "auto"\n\n[database]\nurl = "{url}"\n'
    gateway = start(text, ready=False)
    assert gateway.wait() == 1
    (line,) = gateway.lines_with("ERROR")
    assert "cannot size the slots" in line
    assert "127.0.0.1" in line
    assert "opensesame" not in gateway.log
