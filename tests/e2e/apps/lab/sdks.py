"""Asynchronous SDKs in views of coroutine mode."""

from __future__ import annotations

from typing import Any

import layby
from django.http import HttpRequest, JsonResponse
from django.urls import path

from store.models import Product

PROMPT: Any = [{"role": "user", "content": "Say hello."}]


async def asynchronous(request: HttpRequest) -> JsonResponse:
    # Here, and not at the top: they take a second to import, which the other tests need not wait.
    import anthropic
    import httpx
    import openai

    layby.patch()
    url, before = request.GET["url"], Product.objects.count()
    async with httpx.AsyncClient(follow_redirects=True, timeout=20) as client:
        redirected = (await client.get(f"{url}/redirect")).text
    async with openai.AsyncOpenAI(api_key="k", base_url=f"{url}/openai", max_retries=1) as gpt:
        chunks = await gpt.chat.completions.create(model="m", messages=PROMPT, stream=True)
        parts = [chunk.choices[0].delta.content or "" async for chunk in chunks]
    async with anthropic.AsyncAnthropic(api_key="k", base_url=url, max_retries=1) as claude:
        message = await claude.messages.create(model="m", max_tokens=9, messages=PROMPT)
    async with layby.io, httpx.AsyncClient(timeout=20) as client:
        on_the_loop = (await client.get(f"{url}/hello")).text
    return JsonResponse(
        {
            "httpx": redirected,
            "openai": "|".join(parts),
            "anthropic": message.content[0].text,  # type: ignore[union-attr]
            "on_the_loop": on_the_loop,
            "unchanged": before == Product.objects.count(),
        }
    )


urlpatterns = [path("asynchronous", asynchronous)]
