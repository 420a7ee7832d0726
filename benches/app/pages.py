"""What the views of all servers share: the question, the two queries, the page for everybody."""

import os

from django.db import connection
from django.http import HttpResponse, JsonResponse


def query():
    """Ten milliseconds in the database."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_sleep(0.010)")
        cursor.fetchone()


def asked(request):
    """The addresses to fetch: `?ms=500&fetches=8`."""
    address = f"http://127.0.0.1:{os.environ['BENCH_ORIGIN']}/{int(request.GET['ms'])}"
    return [address] * int(request.GET.get("fetches", "1"))


def answer(quotes):
    return JsonResponse({"quotes": len(quotes), "cents": min(quote["cents"] for quote in quotes)})


def hello(request):
    return HttpResponse("Hello, world!\n", content_type="text/plain")
