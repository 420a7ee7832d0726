"""A client that leaves ends the request where it waits, below whatever library."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anthropic
import boto3
import httpx
import httpx2
import openai
import pytest
import requests
import stripe
from botocore.config import Config

import layby
from layby import _job

PROMPT: Any = [{"role": "user", "content": "hi"}]
URL = "http://shop.example"


def s3() -> Any:
    return boto3.client(
        "s3",
        endpoint_url=URL,
        region_name="eu-central-1",
        aws_access_key_id="id",
        aws_secret_access_key="secret",
        config=Config(s3={"addressing_style": "path"}),
    ).list_buckets()


def ask_openai() -> Any:
    with openai.OpenAI(api_key="k", base_url=URL) as client:
        return client.chat.completions.create(model="m", messages=PROMPT)


def ask_anthropic() -> Any:
    with anthropic.Anthropic(api_key="k", base_url=URL) as client:
        return client.messages.create(model="m", max_tokens=1, messages=PROMPT)


def charge() -> Any:
    client = stripe.StripeClient(
        "sk_1", base_addresses={"api": URL}, http_client=stripe.RequestsClient()
    )
    return client.v1.balance.retrieve()


CALLS: dict[str, Callable[[], Any]] = {
    "requests": lambda: requests.get(URL),
    "httpx": lambda: httpx.get(URL),
    "httpx2": lambda: httpx2.get(URL),
    "openai": ask_openai,
    "anthropic": ask_anthropic,
    "stripe": charge,
    "boto3": s3,
}


@pytest.mark.usefixtures("patched")
@pytest.mark.parametrize("library", CALLS)
def test_no_library_goes_on_when_the_client_has_left(start: Any, library: str) -> None:
    seen: list[str] = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        try:
            CALLS[library]()
        except BaseException as error:
            seen.append(type(error).__name__)
            raise
        finally:
            seen.append("finally")
        raise AssertionError("nobody answered")

    [slot] = start(app)
    slot.request(1)
    slot.expect("HOLD")
    slot.send("CANCEL", request=1)
    slot.expect("READY")
    assert seen == ["Cancelled", "finally"]


async def ask_openai_async() -> Any:
    async with openai.AsyncOpenAI(api_key="k", base_url=URL) as client:
        return await client.chat.completions.create(model="m", messages=PROMPT)


async def ask_anthropic_async() -> Any:
    async with anthropic.AsyncAnthropic(api_key="k", base_url=URL) as client:
        return await client.messages.create(model="m", max_tokens=1, messages=PROMPT)


async def ask_httpx_async() -> Any:
    async with httpx.AsyncClient() as client:
        return await client.get(URL)


ASYNC_CALLS = {
    "httpx": ask_httpx_async,
    "openai": ask_openai_async,
    "anthropic": ask_anthropic_async,
}


@pytest.mark.usefixtures("patched")
@pytest.mark.parametrize("library", ASYNC_CALLS)
def test_no_asynchronous_library_goes_on_when_the_client_has_left(start: Any, library: str) -> None:
    seen: list[str] = []

    async def app(environ: dict[str, Any]) -> Any:
        try:
            await ASYNC_CALLS[library]()
        except BaseException as error:
            seen.append(type(error).__name__)
            raise
        raise AssertionError("nobody answered")

    [slot] = start(app, mode="coroutine")
    slot.request(1)
    slot.expect("PARK")
    slot.send("CANCEL", request=1, epoch=1)
    slot.expect("READY")
    assert seen == ["Cancelled"]


@pytest.mark.usefixtures("patched")
def test_a_refused_park_is_told_as_it_is(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAYBY_STRICT", "1")
    obstacle = _job.Obstacle("transaction", "on database 'default'")
    monkeypatch.setattr(_job, "park_checks", [lambda job: obstacle])
    monkeypatch.setattr("layby._parking.park_checks", [lambda job: obstacle])
    seen: list[BaseException] = []

    async def app(environ: dict[str, Any]) -> Any:
        try:
            await ask_httpx_async()
        except Exception as error:
            seen.append(error)
            raise

    [slot] = start(app, mode="coroutine")
    slot.request(1)
    slot.answer()
    assert isinstance(seen[0], layby.ParkRefused)
