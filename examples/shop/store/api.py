"""The same shop for programs: JSON in, JSON out, no CSRF token needed.

An answer tells enough about the request it belongs to that a test can see whether anything of
another request got into it.
"""

from __future__ import annotations

import json
import os
import threading
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from django.contrib.messages import error, get_messages, success, warning
from django.db import transaction
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.middleware.csrf import get_token
from django.utils.translation import get_language
from django.utils.translation import gettext as _
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

from store import checkout as checkouts
from store.cart import MOST_OF_ONE
from store.forms import QuoteForm
from store.models import Order, Product

STATUS = {Order.Status.PAID: 200, Order.Status.REVIEW: 202, Order.Status.FAILED: 402}


class Invalid(ValueError):
    """What is wrong with the body of a request."""


@dataclass(frozen=True)
class Purchase:
    reference: str
    token: object
    lines: list[tuple[Product, int]]
    address: checkouts.Address
    card: str
    latency: float | None


@csrf_exempt
@require_POST
async def checkout(request: HttpRequest, *, atomic: bool = False) -> HttpResponse:
    began_on = here()
    try:
        purchase = read_purchase(request.body)
    except Invalid as mistake:
        return JsonResponse({"error": str(mistake)}, status=400)

    with transaction.atomic() if atomic else nullcontext():
        order = checkouts.place(purchase.reference, request.user, purchase.address, purchase.lines)
        await checkouts.settle(order, purchase.card, purchase.latency)

    if order.status == Order.Status.PAID:
        name = order.name or request.user.get_username() or _("dear customer")
        success(request, _("Thank you, %(name)s! It is paid.") % {"name": name})
    elif order.status == Order.Status.REVIEW:
        warning(request, _("Thank you! We are looking at your order and will write."))
    else:
        error(request, _("Order %(reference)s is not paid.") % {"reference": order.reference})
    answer = {
        "reference": order.reference,
        "token": purchase.token,
        "order": order.pk,
        "status": order.status,
        "total": str(order.total),
        "charge": order.charge,
        "delivery_days": order.delivery_days,
        "messages": [str(message) for message in get_messages(request)],
        "csrf": get_token(request),
        "began_on": began_on,
        **identity(request),
    }
    return JsonResponse(answer, status=STATUS[Order.Status(order.status)])


def quote(request: HttpRequest) -> HttpResponse:
    form = QuoteForm(request.GET)
    if not form.is_valid():
        return JsonResponse({"error": form.errors.get_json_data()}, status=400)
    found = checkouts.quote(form.cleaned_data["zip"], form.cleaned_data["grams"])
    return JsonResponse({"quote": found or None, **identity(request)}, status=200 if found else 502)


def whoami(request: HttpRequest) -> HttpResponse:
    return JsonResponse(identity(request))


def healthz(request: HttpRequest) -> HttpResponse:
    return HttpResponse("ok\n", content_type="text/plain")


def identity(request: HttpRequest) -> dict[str, Any]:
    return {
        "user": request.user.get_username() or None,
        "language": get_language(),
        "on": here(),
    }


def here() -> str:
    """Which thread of which process runs this line."""
    return f"{os.getpid()}:{threading.get_native_id()}"


def read_purchase(body: bytes) -> Purchase:
    try:
        given = json.loads(body)
    except ValueError:
        raise Invalid("the body is not JSON") from None
    if not isinstance(given, dict):
        raise Invalid("the body is not a JSON object")
    return Purchase(
        reference=text(given, "reference", most=64, least=1),
        token=given.get("token"),
        lines=read_lines(given.get("lines")),
        address=checkouts.Address(
            text(given, "name", most=100),
            text(given, "street", most=100),
            text(given, "zip", most=12),
            text(given, "city", most=100),
        ),
        card=one_of(given, "card", checkouts.CARDS, default="good"),
        latency=milliseconds(given.get("latency")),
    )


def read_lines(given: object) -> list[tuple[Product, int]]:
    if not isinstance(given, list) or not 1 <= len(given) <= 50:
        raise Invalid("lines is a list of 1 to 50 objects")
    wanted: dict[str, int] = {}
    for line in given:
        slug = line.get("product") if isinstance(line, dict) else None
        quantity = line.get("quantity", 1) if isinstance(line, dict) else None
        if not isinstance(slug, str) or type(quantity) is not int:
            raise Invalid('a line is {"product": "teapot", "quantity": 1}')
        if not 1 <= quantity <= MOST_OF_ONE:
            raise Invalid(f"quantity is from 1 to {MOST_OF_ONE}")
        wanted[slug] = wanted.get(slug, 0) + quantity
    products = Product.objects.filter(slug__in=wanted)
    lines = [(product, wanted.pop(product.slug)) for product in products]
    if wanted:
        raise Invalid(f"no such product: {min(wanted)}")
    return lines


def text(given: dict[str, Any], name: str, *, most: int, least: int = 0) -> str:
    value = given.get(name, "")
    if not isinstance(value, str) or not least <= len(value) <= most or "\0" in value:
        raise Invalid(f"{name} is a string of {least} to {most} characters")
    return value


def one_of(given: dict[str, Any], name: str, choices: dict[str, Any], default: str) -> str:
    value = given.get(name, default)
    if not isinstance(value, str) or value not in choices:
        raise Invalid(f"{name} is one of {', '.join(choices)}")
    return value


def milliseconds(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 3_600_000:
        raise Invalid("latency is a number of milliseconds")
    return float(value)
