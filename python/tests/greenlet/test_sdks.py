"""SDKs as they are, in plain synchronous code that parks."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import botocore.config
import httpx
import openai
import pytest
import requests
from stories import Start, app

sys.path.insert(0, str(Path(__file__).parent.parent / "transports"))

from gateway import Gateway
from origin import Origin, Reply, json_reply

import layby


@pytest.fixture
def gateway(start: Start) -> Gateway:
    return Gateway(start)


@pytest.fixture
def origin() -> Iterator[Origin]:
    origin = Origin()
    yield origin
    origin.close()


@pytest.fixture(autouse=True)
def patched() -> Iterator[None]:
    layby.patch()
    yield
    layby.unpatch()


def test_every_library_parks(gateway: Gateway, origin: Origin) -> None:
    origin.on("/old", Reply(302, (("Location", "/new"),)))
    origin.on("/new", Reply(200, (), b"here"))

    def view() -> list[str]:
        with requests.Session() as session, httpx.Client(follow_redirects=True) as client:
            return [session.get(f"{origin.url}/old").text, client.get(f"{origin.url}/old").text]

    assert gateway.run(view) == ["here", "here"]
    assert gateway.kinds == ["PARK"] * 4


def test_openai_parks(gateway: Gateway, origin: Origin) -> None:
    delta = {"index": 0, "delta": {"content": "hello"}, "finish_reason": None}
    chunk = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    events = f"data: {json.dumps({**chunk, 'choices': [delta]})}\n\ndata: [DONE]\n\n"
    stream = Reply(200, (("Content-Type", "text/event-stream"),), events.encode())
    origin.on("/chat/completions", json_reply(b"{}", 500, ("Retry-After-Ms", "1")), stream)

    def view() -> list[str | None]:
        with openai.OpenAI(api_key="k", base_url=origin.url, max_retries=1) as client:
            chunks = client.chat.completions.create(
                model="m", messages=[{"role": "user", "content": "hi"}], stream=True
            )
            return [each.choices[0].delta.content for each in chunks]

    assert gateway.run(view) == ["hello"]
    assert gateway.kinds == ["PARK"] * 2


def test_s3_parks(gateway: Gateway, origin: Origin) -> None:
    origin.on("/shop/teapot", Reply(200, (), b"a teapot"))

    def view() -> bytes:
        client = boto3.client(
            "s3",
            endpoint_url=origin.url,
            region_name="eu-central-1",
            aws_access_key_id="id",
            aws_secret_access_key="secret",
            config=botocore.config.Config(s3={"addressing_style": "path"}),
        )
        body: bytes = client.get_object(Bucket="shop", Key="teapot")["Body"].read()
        client.close()
        return body

    assert gateway.run(view) == b"a teapot"
    assert gateway.kinds == ["PARK"]


def test_requests_on_one_slot_share_a_session(start: Start) -> None:
    """Each has its own answer, and none waits for the connection of one that is parked."""
    adapter = requests.adapters.HTTPAdapter(pool_maxsize=1, pool_block=True)
    with requests.Session() as session:
        session.mount("http://", adapter)

        def view(environ: dict[str, Any]) -> bytes:
            url = f"http://shop.example{environ['PATH_INFO']}"
            return session.get(url).content + environ["PATH_INFO"].encode()

        [slot] = start(app(view))
        for request in range(1, 11):
            slot.request(request, f"/{request}")
            assert slot.expect("PARK").plan["gather"][0]["fetch"]["url"].endswith(f"/{request}")
        for request in reversed(range(1, 11)):
            body = f"for {request} at ".encode()
            entry = {
                "status": 200,
                "reason": "OK",
                "url": "",
                "headers": [],
                "body": [0, len(body)],
                "seconds": 0.1,
                "redirects": 0,
            }
            slot.results("RESUME", request, 1, entry, body=body)
            assert slot.answer()[1] == f"for {request} at /{request}".encode()
