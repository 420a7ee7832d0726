"""Client libraries and SDKs in views, unchanged: their requests are the gateway's fetches."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import quote

import pytest

from conftest import TO_THE_STUB, Starter
from support.apis import Apis
from support.client import Answer, Connection
from support.origin import HoldingOrigin
from support.story import story

WAITS = "layby_waits_in_place_total"
ONE_PROCESS = ("--slots=2", "--processes=1")

# requests and httpx with their redirect, openai and anthropic with their retries, stripe, S3.
REQUESTS = 2 + 1 + 2 + 2 + 1 + 2


@pytest.fixture
def apis() -> Iterator[Apis]:
    with Apis() as running:
        yield running


@story(120)
async def sdks_in_sync_code(mode: str, apis: Apis, start: Starter) -> None:
    gateway = start(TO_THE_STUB, app="sdks", flags=(f"--mode={mode}", *ONE_PROCESS))
    connection = await Connection.open(gateway.address)
    answer = await connection.ask("GET", f"/all?url={quote(apis.url, safe='')}")
    assert answer.json() == {
        "requests": "hello",
        "httpx": "hello",
        "openai": "hel|lo",
        "anthropic": "hello",
        "stripe": "pi_1",
        "s3": "a teapot",
    }
    assert len(apis.seen) == REQUESTS
    assert gateway.metric("layby_fetches_total") == REQUESTS
    parks, waits = (REQUESTS, 0) if mode == "greenlet" else (0, REQUESTS)
    assert gateway.metric("layby_park_seconds_count") == parks
    assert gateway.metric(WAITS) == waits
    gateway.settles(2)


@pytest.mark.parametrize("mode", ["wsgi", "greenlet"])
def test_sdks_in_sync_code_fetch(mode: str, apis: Apis, start: Starter) -> None:
    sdks_in_sync_code(mode=mode, apis=apis, start=start)


@story(120)
async def test_asynchronous_sdks_park_in_coroutine_mode(apis: Apis, start: Starter) -> None:
    gateway = start(flags=ONE_PROCESS, DJANGO_SETTINGS_MODULE="lab.settings")
    connection = await Connection.open(gateway.address)
    url = quote(apis.url, safe="")
    answer = await connection.ask("GET", f"/lab/sdks/asynchronous?url={url}")
    assert answer.status == 200, answer.text[:2000]
    assert answer.json() == {
        "httpx": "hello",
        "openai": "hel|lo",
        "anthropic": "hello",
        "on_the_loop": "hello",
        "unchanged": True,
    }
    assert len(apis.seen) == 7
    # All but the one on the loop; parked were also the two pauses and the block itself.
    assert gateway.metric("layby_fetches_total") == 6
    assert gateway.metric("layby_park_seconds_count") == 6 + 2 + 1
    assert gateway.metric(WAITS) == 0
    gateway.settles(2)


@story(120)
async def test_what_the_gateway_cannot_do_is_counted_by_its_line(
    apis: Apis, start: Starter
) -> None:
    gateway = start(TO_THE_STUB, app="sdks", flags=("--mode=greenlet", *ONE_PROCESS))
    connection = await Connection.open(gateway.address)
    for _ in range(2):
        answer = await connection.ask("GET", f"/upload?url={quote(apis.url, safe='')}")
        assert (answer.status, answer.text) == (200, "from a file")
    assert gateway.metric("layby_fetches_total") == 0
    assert gateway.metric(WAITS, reason="unsupported") == 2
    (wait,) = gateway.status()["waits_in_place"]
    assert (wait["reason"], wait["count"]) == ("unsupported", 2)
    assert wait["source"].startswith("sdks.py:")
    (line,) = gateway.lines_with("waits in place")
    assert "a request body from a file" in line
    gateway.settles(2)


@story(120)
async def test_refusals_and_timeouts_are_errors_of_the_library(start: Starter) -> None:
    gateway = start(TO_THE_STUB, app="sdks", flags=("--mode=greenlet", *ONE_PROCESS))
    connection = await Connection.open(gateway.address)

    async def outcome(url: str) -> Answer:
        return await connection.ask("GET", f"/outcome?url={quote(url, safe='')}")

    refused = await outcome("http://10.0.0.1/")
    assert refused.text.startswith("ConnectionError: ")
    assert "Refused by the gateway's [outbound] allow" in refused.text
    assert gateway.metric("layby_fetches_total", outcome="refused") == 1

    async with HoldingOrigin() as origin:
        late = await outcome(f"{origin.url}/x")
    assert late.text.startswith("ReadTimeout: ")
    # Both of its timeouts together: half a second each.
    assert 0.9 < late.seconds < 3
