"""The main scenario in every way that layby runs it: the modes, and clients that people have."""

import threading

import httpx
import layby
import layby.httpx
import layby.requests
import requests
from django.urls import path

from pages import answer, asked, hello, query
from views_layby import checkout

# One for each thread, as the documentation of requests and httpx asks for.
local = threading.local()
# For all requests of the process: on its one event loop. Keep-alive connections without a bound
# cost httpx a search through all of them for every request.
shared = httpx.AsyncClient(
    timeout=None, limits=httpx.Limits(max_connections=None, max_keepalive_connections=20)
)


def plain(request):
    query()
    [url] = asked(request)
    response = layby.get(url).result()
    query()
    return answer([response.json()])


def by_requests(request):
    if not hasattr(local, "session"):
        local.session = requests.Session()
        local.session.mount("http://", layby.requests.Adapter())
    query()
    [url] = asked(request)
    response = local.session.get(url)
    query()
    return answer([response.json()])


def by_httpx(request):
    if not hasattr(local, "client"):
        local.client = httpx.Client(transport=layby.httpx.Transport(), timeout=None)
    query()
    [url] = asked(request)
    response = local.client.get(url)
    query()
    return answer([response.json()])


async def io(request):
    query()
    [url] = asked(request)
    async with layby.io:
        response = await shared.get(url)
    query()
    return answer([response.json()])


async def wait(request):
    """Parked, and nothing else: for the memory of it."""
    [url] = asked(request)
    response = await layby.get(url)
    return answer([response.json()])


def wait_plain(request):
    [url] = asked(request)
    return answer([layby.get(url).result().json()])


urlpatterns = [
    path("hello", hello),
    path("coroutine", checkout),
    path("plain", plain),
    path("requests", by_requests),
    path("httpx", by_httpx),
    path("io", io),
    path("wait", wait),
    path("wait-plain", wait_plain),
]
