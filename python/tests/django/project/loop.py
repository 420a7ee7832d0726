"""Views with `layby.io`, `layby.parallel` and streams that use them."""

import asyncio
import threading

from asgiref.sync import sync_to_async
from django.core.exceptions import SynchronousOnlyOperation
from django.db import connections, transaction
from django.http import HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import path, reverse
from django.utils import timezone, translation
from django.utils.translation import gettext

import layby
from layby.django import on_event_loop
from project.models import Order


def state(request):
    """What must be the same wherever the request is; touches no database."""
    return [
        translation.get_language(),
        gettext("Yes"),
        timezone.get_current_timezone_name(),
        reverse("checkout"),
    ]


def where(using):
    """Backend (or thread) that a query runs on; and that the state is there as well."""
    if connections[using].vendor != "postgresql":
        return [Order.objects.count() >= 0 and threading.get_ident(), translation.get_language()]
    with connections[using].cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return [cursor.fetchone()[0], translation.get_language()]


def prepare(request):
    translation.activate(request.GET.get("language", "de"))
    timezone.activate("Asia/Tokyo")
    return request.GET.get("using", "default")


async def io(request):
    """State and queries before, inside and after a block."""
    using = prepare(request)
    user = request.user.username
    before = [user, *state(request)]
    request.session["before"] = "kept"
    backends = [where(using)]
    async with layby.io:
        await asyncio.sleep(0)
        inside = [request.user.username, *state(request)]
        beside = await asyncio.gather(*(sync_to_async(where)(using) for _ in range(3)))
        beside.append(await layby.in_slot(where, using))
        # What a helper changes is changed, as without the block.
        await sync_to_async(timezone.activate)("America/Lima")
        thread = threading.current_thread().name
    backends.append(where(using))
    return JsonResponse(
        {
            "before": before,
            "inside": inside,
            "after": [request.user.username, *state(request)],
            "backends": backends,
            "beside": beside,
            "thread": thread,
            "session": request.session["before"],
        }
    )


async def refused(request):
    """What cannot be done inside: the ORM, and layby's own things."""
    seen = []
    async with layby.io:
        try:
            Order.objects.count()
        except SynchronousOnlyOperation as error:
            seen.append(type(error).__name__)
        try:
            await layby.get("http://a.example/")
        except layby.Error as error:
            seen.append(str(error))
    return JsonResponse({"seen": seen, "after": Order.objects.count() >= 0})


async def timeout_around(request):
    async with asyncio.timeout(1), layby.io:
        return HttpResponse("unreachable")


async def raises(request):
    async with layby.io:
        await asyncio.sleep(0)
        raise ValueError("inside")


async def cancels_itself(request):
    try:
        async with layby.io:
            asyncio.current_task().cancel()
            await asyncio.sleep(60)
    except asyncio.CancelledError:
        return HttpResponse(f"cancelled {Order.objects.count() >= 0}")


async def atomic(request):
    """A block inside a transaction; what it runs in a slot is part of that."""
    using = prepare(request)
    with transaction.atomic(using=using):
        order = await Order.objects.using(using).acreate(owner="atomic-io", state="new")
        async with layby.io:
            found = await sync_to_async(Order.objects.using(using).filter(pk=order.pk).count)()
        transaction.set_rollback(True, using=using)
    return HttpResponse(str(found))


async def half_read(request):
    using = prepare(request)
    rows = Order.objects.using(using).order_by("pk").iterator(chunk_size=2)
    first = next(rows)
    async with layby.io:
        await asyncio.sleep(0)
    second = next(rows)
    # To its end: the connection may be closed before the garbage is collected.
    list(rows)
    return HttpResponse(str(first.pk < second.pk))


@on_event_loop
async def on_loop(request):
    async with layby.io:
        await asyncio.sleep(0)
        count = await layby.in_slot(Order.objects.count)
    return HttpResponse(f"{threading.current_thread().name != 'layby-loop'} {count >= 0}")


def operation(using, number):
    translation_before = translation.get_language()
    translation.activate("fr")  # which is nobody else's business
    return [*where(using)[:1], translation_before, number]


async def parallel(request):
    using = prepare(request)
    async with layby.parallel() as ops:
        many = [ops.run(operation, using, number) for number in range(3)]
    return JsonResponse({"ops": [op.result() for op in many], "after": translation.get_language()})


async def parallel_atomic(request):
    using = prepare(request)
    ran = []
    with transaction.atomic(using=using):
        Order.objects.using(using).count()
        try:
            async with layby.parallel() as ops:
                ops.run(ran.append, 1)
        except layby.ParkRefused as error:
            return HttpResponse(f"{error} {ran}")
    return HttpResponse("not refused")


async def parallel_atomic_io(request):
    """The same inside `layby.io`, by the block's task and by one of its children."""
    using = prepare(request)
    ran = []

    async def refused():
        try:
            async with layby.parallel() as ops:
                ops.run(ran.append, 1)
        except layby.ParkRefused:
            return True
        return False

    with transaction.atomic(using=using):
        Order.objects.using(using).count()
        async with layby.io:
            seen = [await refused(), *await asyncio.gather(refused())]
    async with layby.io:
        seen.append(await refused())
    return HttpResponse(f"{seen} {ran}")


def leave_transaction(using):
    transaction.atomic(using=using).__enter__()
    Order.objects.using(using).create(owner="left-open", state="new")


def leave_autocommit_off(using):
    transaction.set_autocommit(False, using=using)
    Order.objects.using(using).create(owner="left-open", state="new")


def leave_begin(using):
    cursor = connections[using].cursor()
    cursor.execute("BEGIN")
    cursor.close()
    Order.objects.using(using).create(owner="left-open", state="new")


def leave_cursor(using):
    rows = Order.objects.using(using).iterator(chunk_size=2)
    next(rows)
    return rows


async def leaves_open(request):
    """Operations that leave something open, on every slot in turn, and what others then see."""
    using = prepare(request)
    leave = globals()[f"leave_{request.GET['what']}"]
    seen = ""
    for _ in range(4):
        try:
            async with layby.parallel() as ops:
                ops.run(leave, using)
        except layby.Error as error:
            seen = str(error)
        if connections[using].in_atomic_block or not connections[using].get_autocommit():
            return HttpResponse("still open")
    count = Order.objects.using(using).filter(owner="left-open").count()
    return HttpResponse(f"{count} {seen}")


async def stream(request):
    """A generator that is inside the block for most of its life."""
    prepare(request)

    async def parts():
        yield f"{translation.get_language()},"
        async with layby.io:
            for number in range(2):
                await asyncio.sleep(0)
                yield f"{number} {translation.get_language()} {threading.current_thread().name},"
        yield f"{Order.objects.count() >= 0}"

    return StreamingHttpResponse(parts())


urlpatterns = [
    path("io/", io),
    path("refused/", refused),
    path("timeout-around/", timeout_around),
    path("raises/", raises),
    path("cancels-itself/", cancels_itself),
    path("atomic/", atomic),
    path("half-read/", half_read),
    path("on-loop/", on_loop),
    path("parallel/", parallel),
    path("parallel-atomic/", parallel_atomic),
    path("parallel-atomic-io/", parallel_atomic_io),
    path("leaves-open/", leaves_open),
    path("stream/", stream),
]
