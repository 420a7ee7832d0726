"""As written for layby: blocking code, and an `await` where it waits for others."""

import layby
from django.urls import path

from pages import answer, asked, hello, query


async def checkout(request):
    query()
    [url] = asked(request)
    response = await layby.get(url)
    query()
    return answer([response.json()])


async def compare(request):
    query()
    responses = await layby.gather(*(layby.get(url) for url in asked(request)))
    query()
    return answer([response.json() for response in responses])


urlpatterns = [
    path("hello", hello),
    path("checkout", checkout),
    path("compare", compare),
]
