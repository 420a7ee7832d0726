"""Views, mostly `async def` with blocking code in them; `layby.sleep` is where they park."""

import asyncio
import json
import threading
from pathlib import Path

from asgiref.sync import async_to_sync, sync_to_async
from django.contrib import auth, messages
from django.core.cache import cache, caches
from django.db import connection, connections, transaction
from django.dispatch import Signal
from django.http import FileResponse, Http404, HttpResponse, JsonResponse, StreamingHttpResponse
from django.middleware.csrf import get_token
from django.shortcuts import render
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils import timezone, translation
from django.utils.translation import gettext
from django.views import View

import layby
from layby.django import on_event_loop
from project.models import Order


async def park():
    await layby.sleep(0.0)


async def checkout(request):
    """Everything that must come through a park unharmed, read before and after it."""
    using = request.GET.get("using", "default")
    zone = request.POST["zone"]
    translation.activate(request.POST["language"])
    timezone.activate(zone)
    before = _state(request)
    request.session["visits"] = request.session.get("visits", 0) + 1
    messages.info(request, f"before {request.user.username}")
    order = Order.objects.using(using).create(owner=request.user.username, state="new")
    first_backend, first_thread = _backend(using), threading.get_ident()

    await park()

    order.state = "paid"
    order.save()
    messages.info(request, f"after {request.user.username}")
    page = render(request, "checkout.html").content.decode().strip()
    return JsonResponse(
        {
            "before": before,
            "after": _state(request),
            "page": page,
            "visits": request.session["visits"],
            "order": Order.objects.using(using).get(pk=order.pk).state,
            "owner": order.owner,
            "backends": [first_backend, _backend(using)],
            "moved": threading.get_ident() != first_thread,
        }
    )


def _state(request):
    return {
        "user": request.user.username,
        "language": translation.get_language(),
        "yes": gettext("Yes"),
        "zone": timezone.get_current_timezone_name(),
        "url": reverse("checkout"),
        "posted": request.POST["note"],
    }


def _backend(using):
    if connections[using].vendor != "postgresql":
        return None
    with connections[using].cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return cursor.fetchone()[0]


def csrf(request):
    return HttpResponse(get_token(request))


def hello(request):
    return HttpResponse("hello")


async def ahello(request):
    return HttpResponse("hello")


async def blocking(request):
    """The seed of it all: blocking ORM, a wait, blocking ORM."""
    order = Order.objects.create(owner="blocking", state="new")
    await park()
    order.state = "paid"
    order.save()
    return JsonResponse({"state": Order.objects.get(pk=order.pk).state})


async def user_after(request):
    await park()
    return HttpResponse(request.user.username)


async def auser_after(request):
    await park()
    return HttpResponse((await request.auser()).username)


async def log_in(request):
    user = auth.authenticate(request, username=request.GET["name"], password="secret")
    await park()
    if request.GET["how"] == "async":
        await auth.alogin(request, user)
    else:
        auth.login(request, user)
    return HttpResponse(request.user.username)


async def fails(request):
    await park()
    raise ValueError("after the park")


async def missing(request):
    await park()
    raise Http404("after the park")


async def key_error(request):
    await park()
    raise KeyError("for the middleware")


async def locale(request):
    before = translation.get_language()
    await park()
    return HttpResponse(f"{before} {translation.get_language()} {gettext('Yes')}")


async def atomic(request):
    with transaction.atomic(using=request.GET.get("using", "default")):
        order = Order.objects.using(request.GET.get("using", "default")).create(
            owner="atomic", state="new"
        )
        await park()
        order.state = "paid"
        order.save()
    return HttpResponse(order.state)


async def begin(request):
    database = connections[request.GET.get("using", "default")]
    with database.cursor() as cursor:
        cursor.execute("BEGIN")
    await park()
    with database.cursor() as cursor:
        cursor.execute("COMMIT")
    return HttpResponse("committed")


async def autocommit_off(request):
    using = request.GET.get("using", "default")
    transaction.set_autocommit(False, using=using)
    await park()
    transaction.rollback(using=using)
    transaction.set_autocommit(True, using=using)
    return HttpResponse("on")


async def iterator(request):
    """A park while an iterator is half read."""
    orders = Order.objects.using(request.GET.get("using", "default")).order_by("pk")
    rows = orders.iterator(chunk_size=2)
    seen = [next(rows).pk]
    await park()
    seen += [order.pk for order in rows]
    return HttpResponse("whole" if seen == [order.pk for order in orders] else "cut")


async def iterated(request):
    """A park after an iterator is read to its end."""
    rows = Order.objects.using(request.GET.get("using", "default")).iterator(chunk_size=2)
    count = len(list(rows))
    await park()
    return HttpResponse(str(count > 0))


async def cursor(request):
    with connections[request.GET.get("using", "default")].cursor() as open_cursor:
        open_cursor.execute("SELECT 1")
        await park()
        return HttpResponse(str(open_cursor.fetchone()[0]))


async def closed_cursor(request):
    with connections[request.GET.get("using", "default")].cursor() as closed:
        closed.execute("SELECT 1")
    await park()
    return HttpResponse(type(closed).__name__)


async def execute_wrapper(request):
    calls = []

    def count(execute, sql, params, many, context):
        calls.append(sql)
        return execute(sql, params, many, context)

    with connection.execute_wrapper(count):
        Order.objects.count()
        await park()
        Order.objects.count()
    await park()
    Order.objects.count()
    return HttpResponse(str(len(calls)))


async def orm(request):
    order = await Order.objects.acreate(owner="a-methods", state="new")
    thread = await sync_to_async(threading.get_ident)()
    await park()
    found = await Order.objects.aget(pk=order.pk)
    names = [each.owner async for each in Order.objects.filter(pk=order.pk)]
    return JsonResponse({"found": found.owner, "names": names, "direct": thread is not None})


async def sleeps(request):
    await asyncio.sleep(float(request.GET["seconds"]))
    return HttpResponse("slept")


@on_event_loop
async def sleeps_on_loop(request):
    await asyncio.sleep(0.001)
    return HttpResponse("slept")


def by_hand(request):
    """`async_to_sync` as applications use it: for what needs asyncio, and layby too."""

    async def inner():
        await asyncio.sleep(0.001)
        return await layby.sleep(0.0), await sync_to_async(Order.objects.count)()

    slept, count = async_to_sync(inner)()
    return HttpResponse(f"{slept} {count >= 0}")


def sync(request):
    slept = layby.sleep(0.0).result()
    return HttpResponse(f"slept {slept}")


def stream(request):
    return StreamingHttpResponse(f"{number}," for number in range(3))


async def async_stream(request):
    async def parts():
        try:
            for number in range(3):
                await park()
                yield f"{number}:{Order.objects.count() >= 0}:{translation.get_language()},"
        finally:
            await park()
            cache.set("async-stream-closed", True)

    return StreamingHttpResponse(parts())


@on_event_loop
async def loop_stream(request):
    async def parts():
        for number in range(3):
            await asyncio.sleep(0)
            yield f"{number},"

    return StreamingHttpResponse(parts())


def file(request):
    return FileResponse(Path(__file__).open("rb"))


def cookies(request):
    response = HttpResponse("cookies")
    response.set_cookie("a", "1", max_age=10, samesite="Lax")
    response.set_cookie("b", "zwei drei")
    return response


async def cache_ids(request):
    backends = caches["default"], caches["other"]
    thread = threading.get_ident()
    await park()
    return JsonResponse(
        {
            "before": [thread, *(id(each) for each in backends)],
            "after": [threading.get_ident(), id(caches["default"]), id(caches["other"])],
        }
    )


async def session_cache(request):
    """Whether the session's cache backend is that of the slot, before and after."""
    before = request.session._cache is caches["default"]
    await park()
    return HttpResponse(f"{before} {request.session._cache is caches['default']}")


async def backends(request):
    """Names and pids of the connections that a request uses."""
    seen = []
    for _ in range(2):
        with connections["pg"].cursor() as open_cursor:
            open_cursor.execute("SELECT pg_backend_pid(), current_setting('application_name')")
            seen.append(open_cursor.fetchone())
        await park()
    return JsonResponse({"seen": seen})


async def cleanup(request):
    """What runs when the client leaves while this is parked."""
    order = Order.objects.create(owner="cleanup", state="new")
    try:
        await park()
    finally:
        order.state = "cleaned"
        order.save()
    return HttpResponse("not cancelled")


async def signals(request):
    """Signals sent from a coroutine, to receivers of both kinds."""
    signal, heard = Signal(), []

    def plain(**named):
        heard.append("plain")
        return 1

    async def parks(**named):
        await park()
        heard.append("parks")
        return 2

    def breaks(**named):
        raise ValueError("broken receiver")

    signal.connect(plain)
    signal.connect(parks)
    answers = [answer for _, answer in await signal.asend(sender=None)]
    signal.connect(breaks)
    robust = [repr(answer) for _, answer in await signal.asend_robust(sender=None)]
    return HttpResponse(json.dumps({"answers": answers, "robust": robust, "heard": heard}))


class ClassView(View):
    async def get(self, request):
        await park()
        return HttpResponse(f"get {getattr(request, 'seen_by_process_view', False)}")

    async def post(self, request):
        await park()
        return HttpResponse("post")


async def template(request):
    """A response that is rendered after the view, in the language it was made for."""
    translation.activate("de")
    await park()
    return TemplateResponse(request, "language.html", {"owner": "template"})
