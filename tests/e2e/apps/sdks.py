"""A Flask application whose views use client libraries and SDKs as they come.

The SDKs are imported where they are used: they take seconds, and not every test needs them.
"""

from __future__ import annotations

import io
from typing import Any

import httpx
import layby
import requests
from flask import Flask, jsonify, request

layby.patch()

application = Flask(__name__)

PROMPT: Any = [{"role": "user", "content": "Say hello."}]


@application.get("/all")
def all_of_them() -> Any:
    url = request.args["url"]
    return jsonify(
        requests=requests.get(f"{url}/redirect", timeout=20).text,
        httpx=httpx.get(f"{url}/hello", timeout=20).text,
        openai=ask_openai(url),
        anthropic=ask_anthropic(url),
        stripe=charge(url),
        s3=keep(url),
    )


def ask_openai(url: str) -> str:
    import openai

    with openai.OpenAI(api_key="k", base_url=f"{url}/openai", max_retries=1) as client:
        chunks = client.chat.completions.create(model="m", messages=PROMPT, stream=True)
        return "|".join(chunk.choices[0].delta.content or "" for chunk in chunks)


def ask_anthropic(url: str) -> str:
    import anthropic

    with anthropic.Anthropic(api_key="k", base_url=url, max_retries=1) as client:
        message = client.messages.create(model="m", max_tokens=9, messages=PROMPT)
        return str(message.content[0].text)  # type: ignore[union-attr]


def charge(url: str) -> str:
    import stripe

    client = stripe.StripeClient(
        "sk_test_1", base_addresses={"api": url}, http_client=stripe.RequestsClient()
    )
    return str(client.v1.payment_intents.create({"amount": 490, "currency": "eur"}).id)


def keep(url: str) -> str:
    import boto3
    from botocore.config import Config

    client = boto3.client(
        "s3",
        endpoint_url=url,
        region_name="eu-central-1",
        aws_access_key_id="id",
        aws_secret_access_key="secret",
        config=Config(s3={"addressing_style": "path"}),
    )
    client.put_object(Bucket="shop", Key="teapot", Body=b"a teapot")
    kept: bytes = client.get_object(Bucket="shop", Key="teapot")["Body"].read()
    client.close()
    return kept.decode()


@application.get("/upload")
def upload() -> Any:
    file = io.BufferedReader(io.BytesIO(b"from a file"))
    return requests.post(f"{request.args['url']}/echo", data=file, timeout=20).text


@application.get("/outcome")
def outcome() -> Any:
    try:
        return requests.get(request.args["url"], timeout=0.5).text
    except requests.RequestException as error:
        return f"{type(error).__name__}: {error}"
