"""As written for an event loop: blocking code in threads, one client shared by all requests."""

import httpx
from asgiref.sync import sync_to_async
from django.urls import path

from pages import answer, asked, hello, query

# With more connections kept, the searches in httpx's pool cost several times as much CPU.
limits = httpx.Limits(max_connections=None, max_keepalive_connections=20)
client = httpx.AsyncClient(limits=limits, timeout=60)


async def checkout(request):
    await sync_to_async(query)()
    [url] = asked(request)
    response = await client.get(url)
    await sync_to_async(query)()
    return answer([response.json()])


urlpatterns = [path("hello", hello), path("checkout", checkout)]
