"""The SDKs that people use, unchanged, against stubs of their services: every request a fetch."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import re
import threading
from collections.abc import Iterator
from typing import Any
from xml.sax.saxutils import escape

import anthropic
import boto3
import botocore.config
import botocore.exceptions
import openai
import pytest
import sentry_sdk
import stripe
from gateway import Gateway, failure
from origin import Origin, Reply, Seen, json_reply

pytestmark = pytest.mark.usefixtures("patched")

PROMPT = [{"role": "user", "content": "Say hello."}]


def sse(*events: tuple[str | None, Any]) -> Reply:
    """Server-sent events, as the services stream their answers."""
    body = b""
    for name, data in events:
        text = data if isinstance(data, str) else json.dumps(data)
        body += (f"event: {name}\n" if name else "").encode() + f"data: {text}\n\n".encode()
    return Reply(200, (("Content-Type", "text/event-stream"),), body)


# openai ---------------------------------------------------------------------------------------


def chat_completion(text: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": text, "refusal": None}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "gpt-test",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }


def chat_chunk(text: str) -> dict[str, Any]:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "gpt-test",
        "choices": [choice],
    }


CHAT = json_reply(json.dumps(chat_completion("hello")).encode())
CHAT_STREAM = sse((None, chat_chunk("hel")), (None, chat_chunk("lo")), (None, "[DONE]"))
AT_ONCE = ("Retry-After-Ms", "1")


def openai_options(origin: Origin) -> dict[str, Any]:
    return {"api_key": "sk-test", "base_url": f"{origin.url}/v1", "max_retries": 2}


def test_openai_chats_streams_and_retries(gateway: Gateway, origin: Origin) -> None:
    busy, broken = json_reply(b"{}", 429, AT_ONCE), json_reply(b"{}", 500, AT_ONCE)
    origin.on("/v1/chat/completions", busy, broken, CHAT, CHAT_STREAM)

    def view() -> tuple[str | None, list[str | None]]:
        with openai.OpenAI(**openai_options(origin)) as client:
            whole = client.chat.completions.create(model="gpt-test", messages=PROMPT)  # type: ignore[arg-type]
            stream = client.chat.completions.create(
                model="gpt-test",
                messages=PROMPT,
                stream=True,  # type: ignore[arg-type]
            )
            parts = [chunk.choices[0].delta.content for chunk in stream]
            return whole.choices[0].message.content, parts

    assert gateway.run(view) == ("hello", ["hel", "lo"])
    assert len(gateway.fetches) == 4
    assert all(seen.by_gateway for seen in origin.seen)
    assert [seen.header("x-stainless-retry-count") for seen in origin.seen] == ["0", "1", "2", "0"]
    assert origin.seen[0].header("authorization") == "Bearer sk-test"
    assert json.loads(origin.seen[0].body)["messages"] == PROMPT
    assert gateway.real_calls == []


def test_asynchronous_openai_parks_also_between_its_attempts(
    gateway: Gateway, origin: Origin
) -> None:
    busy = json_reply(b"{}", 429, AT_ONCE)
    origin.on("/v1/chat/completions", busy, CHAT, CHAT_STREAM)

    async def view() -> tuple[str | None, list[str | None]]:
        async with openai.AsyncOpenAI(**openai_options(origin)) as client:
            whole = await client.chat.completions.create(model="gpt-test", messages=PROMPT)  # type: ignore[arg-type]
            stream = await client.chat.completions.create(
                model="gpt-test",
                messages=PROMPT,
                stream=True,  # type: ignore[arg-type]
            )
            parts = [chunk.choices[0].delta.content async for chunk in stream]
            return whole.choices[0].message.content, parts

    assert gateway.run_async(view) == ("hello", ["hel", "lo"])
    assert gateway.kinds == ["PARK"] * 4  # three fetches and a pause
    assert len(gateway.fetches) == 3
    # The same on an event loop, without us.
    origin.on("/v1/chat/completions", busy, CHAT, CHAT_STREAM)
    assert asyncio.run(view()) == ("hello", ["hel", "lo"])
    assert len(gateway.fetches) == 3


def test_openai_raises_its_own_errors(gateway: Gateway, origin: Origin) -> None:
    options = {**openai_options(origin), "max_retries": 0}

    def view() -> None:
        with openai.OpenAI(**options) as client:
            client.models.list()

    for kind, phase, error in (
        ("timeout", "head", openai.APITimeoutError),
        ("refused", "dns", openai.APIConnectionError),
    ):
        gateway.instead = failure(kind, phase)
        with pytest.raises(error):
            gateway.run(view)
    gateway.instead = None
    origin.on("/v1/models", json_reply(b'{"error": {"message": "no"}}', 401))
    with pytest.raises(openai.AuthenticationError, match="no"):
        gateway.run(view)


# anthropic ------------------------------------------------------------------------------------

MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-test",
    "content": [{"type": "text", "text": "hello"}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {"input_tokens": 1, "output_tokens": 1},
}
STREAMED = sse(
    ("message_start", {"type": "message_start", "message": {**MESSAGE, "content": []}}),
    (
        "content_block_start",
        {
            "type": "content_block_start",
            "index": 0,
            "content_block": {"type": "text", "text": ""},
        },
    ),
    *(
        (
            "content_block_delta",
            {
                "type": "content_block_delta",
                "index": 0,
                "delta": {"type": "text_delta", "text": text},
            },
        )
        for text in ("hel", "lo")
    ),
    ("content_block_stop", {"type": "content_block_stop", "index": 0}),
    (
        "message_delta",
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn", "stop_sequence": None},
            "usage": {"output_tokens": 2},
        },
    ),
    ("message_stop", {"type": "message_stop"}),
)
ASKED: dict[str, Any] = {"model": "claude-test", "max_tokens": 10, "messages": PROMPT}


def anthropic_options(origin: Origin) -> dict[str, Any]:
    return {"api_key": "key-test", "base_url": origin.url, "max_retries": 2}


def test_anthropic_answers_streams_and_retries(gateway: Gateway, origin: Origin) -> None:
    busy, broken = json_reply(b"{}", 429, AT_ONCE), json_reply(b"{}", 500, AT_ONCE)
    whole = json_reply(json.dumps(MESSAGE).encode())
    origin.on("/v1/messages", busy, broken, whole, STREAMED)

    def view() -> tuple[str, str]:
        with anthropic.Anthropic(**anthropic_options(origin)) as client:
            message = client.messages.create(**ASKED)
            with client.messages.stream(**ASKED) as stream:
                parts = "|".join(stream.text_stream)
            return message.content[0].text, parts  # type: ignore[union-attr]

    assert gateway.run(view) == ("hello", "hel|lo")
    assert len(gateway.fetches) == 4
    assert all(seen.by_gateway for seen in origin.seen)
    assert origin.seen[0].header("authorization") == "Bearer key-test"
    assert gateway.real_calls == []


def test_asynchronous_anthropic_parks_also_between_its_attempts(
    gateway: Gateway, origin: Origin
) -> None:
    whole = json_reply(json.dumps(MESSAGE).encode())
    origin.on("/v1/messages", json_reply(b"{}", 529, AT_ONCE), whole, STREAMED)

    async def view() -> tuple[str, str]:
        async with anthropic.AsyncAnthropic(**anthropic_options(origin)) as client:
            message = await client.messages.create(**ASKED)
            async with client.messages.stream(**ASKED) as stream:
                parts = "|".join([text async for text in stream.text_stream])
            return message.content[0].text, parts  # type: ignore[union-attr]

    assert gateway.run_async(view) == ("hello", "hel|lo")
    assert gateway.kinds == ["PARK"] * 4
    assert len(gateway.fetches) == 3


def test_anthropic_raises_its_own_errors(gateway: Gateway, origin: Origin) -> None:
    options = {**anthropic_options(origin), "max_retries": 0}
    gateway.instead = failure("timeout", "body")

    def view() -> None:
        with anthropic.Anthropic(**options) as client:
            client.messages.create(**ASKED)

    with pytest.raises(anthropic.APITimeoutError):
        gateway.run(view)


# stripe ---------------------------------------------------------------------------------------


RETRY = ("Stripe-Should-Retry", "true")


def test_stripe_charges_and_retries(gateway: Gateway, origin: Origin) -> None:
    broken = json_reply(
        b'{"error": {"message": "try again"}}', 500, ("Stripe-Should-Retry", "true")
    )
    intent = {"id": "pi_1", "object": "payment_intent", "amount": 490, "currency": "eur"}
    origin.on("/v1/payment_intents", broken, json_reply(json.dumps(intent).encode()))
    client = stripe.StripeClient(
        "sk_test_1",
        base_addresses={"api": origin.url},
        max_network_retries=1,
        http_client=stripe.RequestsClient(),
    )
    asked: Any = {"amount": 490, "currency": "eur"}
    paid = gateway.run(lambda: client.v1.payment_intents.create(asked))
    assert (paid.id, paid.amount) == ("pi_1", 490)
    assert [seen.by_gateway for seen in origin.seen] == [True, True]
    assert origin.seen[0].body == b"amount=490&currency=eur"
    # Both attempts are one payment.
    keys = {seen.header("idempotency-key") for seen in origin.seen}
    assert len(keys) == 1
    assert None not in keys


def test_stripe_over_tls_is_for_the_gateway_too(gateway: Gateway) -> None:
    gateway.instead = failure("connect", "connect")
    client = stripe.StripeClient("sk_test_1", max_network_retries=0)
    with pytest.raises(stripe.APIConnectionError):
        gateway.run(lambda: client.v1.balance.retrieve())
    [fetch] = gateway.fetches
    assert fetch["url"] == "https://api.stripe.com/v1/balance"
    assert gateway.real_calls == []


def test_asynchronous_stripe_parks(gateway: Gateway, origin: Origin) -> None:
    origin.on("/v1/balance", json_reply(b'{"object": "balance", "livemode": false}'))
    client = stripe.StripeClient(
        "sk_test_1",
        base_addresses={"api": origin.url},
        http_client=stripe.HTTPXClient(),
    )
    balance = gateway.run_async(client.v1.balance.retrieve_async)
    assert balance.object == "balance"
    assert (gateway.kinds, gateway.real_calls) == (["PARK"], [])


def test_asynchronous_stripe_over_tls_parks_too(gateway: Gateway) -> None:
    gateway.instead = failure("connect", "connect")
    http_client = stripe.HTTPXClient()
    client = stripe.StripeClient("sk_test_1", max_network_retries=0, http_client=http_client)
    with pytest.raises(stripe.APIConnectionError):
        gateway.run_async(client.v1.balance.retrieve_async)
    assert [fetch["url"] for fetch in gateway.fetches] == ["https://api.stripe.com/v1/balance"]
    assert gateway.kinds == ["PARK"]


# boto3 ----------------------------------------------------------------------------------------


class Bucket:
    """Of S3 what the tests ask for: put, get and list."""

    def __init__(self, origin: Origin) -> None:
        self.objects: dict[str, bytes] = {}
        origin.on("/shop", self.list)
        for key in ("teapot.txt", "large.bin", "streamed.bin"):
            origin.on(f"/shop/{key}", self.object)

    def object(self, seen: Seen) -> Reply:
        key = seen.target.removeprefix("/shop/").partition("?")[0]
        if seen.method == "PUT":
            self.objects[key] = self.decoded(seen)
            tag = hashlib.md5(self.objects[key], usedforsecurity=False).hexdigest()
            return Reply(200, (("ETag", f'"{tag}"'),))
        if key not in self.objects:
            missing = b"<Error><Code>NoSuchKey</Code><Message>none</Message></Error>"
            return Reply(404, (("Content-Type", "application/xml"),), missing)
        return Reply(200, (("Content-Type", "text/plain"),), self.objects[key])

    def decoded(self, seen: Seen) -> bytes:
        """The body, without the chunks of its own that botocore may put around it."""
        if "aws-chunked" not in (seen.header("content-encoding") or ""):
            return seen.body
        body, rest = b"", seen.body
        while match := re.match(rb"([0-9a-f]+)(;[^\r]*)?\r\n", rest):
            size = int(match[1], 16)
            body, rest = body + rest[match.end() :][:size], rest[match.end() + size + 2 :]
        return body

    def list(self, seen: Seen) -> Reply:
        entries = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(body)}</Size></Contents>"
            for key, body in self.objects.items()
        )
        body = f"<ListBucketResult><Name>shop</Name>{entries}</ListBucketResult>"
        return Reply(200, (("Content-Type", "application/xml"),), body.encode())


@pytest.fixture
def s3(origin: Origin, gateway: Gateway, request: pytest.FixtureRequest) -> Iterator[Any]:
    url = getattr(request, "param", origin.url)
    gateway.origins[url] = origin.url
    client = boto3.client(
        "s3",
        endpoint_url=url,
        region_name="eu-central-1",
        aws_access_key_id="id",
        aws_secret_access_key="secret",
        config=botocore.config.Config(s3={"addressing_style": "path"}, retries={"max_attempts": 1}),
    )
    yield client
    client.close()


@pytest.mark.parametrize("s3", ["https://s3.example", "http://s3.example"], indirect=True)
def test_s3_puts_gets_and_lists(gateway: Gateway, origin: Origin, s3: Any) -> None:
    bucket = Bucket(origin)

    def view() -> tuple[Any, ...]:
        s3.put_object(Bucket="shop", Key="teapot.txt", Body=b"a teapot")
        whole = s3.get_object(Bucket="shop", Key="teapot.txt")["Body"].read()
        lines = list(s3.get_object(Bucket="shop", Key="teapot.txt")["Body"].iter_chunks(3))
        listed = [entry["Key"] for entry in s3.list_objects_v2(Bucket="shop")["Contents"]]
        with pytest.raises(s3.exceptions.NoSuchKey):
            s3.get_object(Bucket="shop", Key="large.bin")
        return whole, lines, listed

    assert gateway.run(view) == (b"a teapot", [b"a t", b"eap", b"ot"], ["teapot.txt"])
    assert bucket.objects == {"teapot.txt": b"a teapot"}
    assert [seen.by_gateway for seen in origin.seen] == [True] * 5
    assert all("Signature=" in (seen.header("authorization") or "") for seen in origin.seen)
    assert gateway.real_calls == []
    checksums = [seen.header("x-amz-trailer") for seen in origin.seen if seen.method == "PUT"]
    assert checksums == ["x-amz-checksum-crc32" if "https" in s3.meta.endpoint_url else None]


def test_what_s3_streams_and_what_no_plan_can_carry_is_a_real_call(
    gateway: Gateway, origin: Origin, s3: Any, tmp_path: Any
) -> None:
    bucket = Bucket(origin)
    file = tmp_path / "streamed.bin"
    file.write_bytes(b"from a file")
    large = b"x" * (1 << 20) + b"y"

    def view() -> None:
        s3.put_object(Bucket="shop", Key="large.bin", Body=large)
        with file.open("rb") as opened:
            s3.put_object(Bucket="shop", Key="streamed.bin", Body=opened)

    gateway.run(view)
    assert bucket.objects == {"large.bin": large, "streamed.bin": b"from a file"}
    assert [seen.by_gateway for seen in origin.seen] == [False] * 2
    assert len(gateway.real_calls) == 2


def test_transfers_of_s3_run_on_threads_of_their_own(
    gateway: Gateway, origin: Origin, s3: Any
) -> None:
    bucket = Bucket(origin)
    gateway.run(lambda: s3.upload_fileobj(io.BytesIO(b"transferred"), "shop", "streamed.bin"))
    assert bucket.objects == {"streamed.bin": b"transferred"}
    assert [seen.by_gateway for seen in origin.seen] == [False]
    assert gateway.real_calls == []


def test_botocore_raises_its_own_errors(gateway: Gateway, s3: Any) -> None:
    for kind, phase, error in (
        ("connect", "connect", botocore.exceptions.EndpointConnectionError),
        ("connect", "dns", botocore.exceptions.EndpointConnectionError),
        ("timeout", "connect", botocore.exceptions.ConnectTimeoutError),
        ("timeout", "head", botocore.exceptions.ReadTimeoutError),
        ("failed", "head", botocore.exceptions.ConnectionClosedError),
    ):
        gateway.instead = failure(kind, phase)
        with pytest.raises(error):
            gateway.run(lambda: s3.put_object(Bucket="shop", Key="a", Body=b"b"))


def test_botocore_asks_the_machine_for_credentials_itself(
    gateway: Gateway, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{origin.url}/credentials")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    keys = {"AccessKeyId": "id", "SecretAccessKey": "s", "Token": "t"}
    keys["Expiration"] = "2999-01-01T00:00:00Z"
    origin.on("/credentials", json_reply(json.dumps(keys).encode()))
    found = gateway.run(lambda: boto3.Session().get_credentials().get_frozen_credentials())
    assert (found.access_key, found.token) == ("id", "t")
    assert [seen.by_gateway for seen in origin.seen] == [False]
    assert len(gateway.real_calls) == 1


# sentry-sdk -----------------------------------------------------------------------------------


def test_sentry_sends_for_itself(gateway: Gateway, origin: Origin) -> None:
    reported = threading.Event()

    def envelope(seen: Seen) -> Reply:
        reported.set()
        return json_reply(b"{}")

    origin.on("/api/7/envelope/", envelope)
    origin.on("/quote", json_reply(b"{}"))
    dsn = origin.url.replace("http://", "http://key@") + "/7"
    sentry_sdk.init(dsn, default_integrations=False, shutdown_timeout=0)
    try:
        client = openai.OpenAI(**openai_options(origin))

        def view() -> None:
            sentry_sdk.capture_message("from a slot")
            with client:
                client.get("/../quote", cast_to=object)
            sentry_sdk.flush(5)

        gateway.run(view)
        assert reported.wait(5)
    finally:
        sentry_sdk.get_client().close(0)
        sentry_sdk.get_global_scope().set_client(None)
    by = {seen.target: seen.by_gateway for seen in origin.seen}
    assert by == {"/api/7/envelope/": False, "/quote": True}
    assert gateway.real_calls == []
