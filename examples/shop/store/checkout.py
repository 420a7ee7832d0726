"""Checkout: what happens between "buy" and the order page.

Blocking code throughout, with one `await`: the three services are asked side by side, and for as
long as they take the request holds neither a thread nor a database connection.

Each service fails in its own way. No shipping date: the order stands, the date comes by mail. No
verdict on fraud: somebody looks at the order. No payment: the order has failed, unless the charge
may have gone through without our seeing the answer; then somebody looks at it, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import layby
from django.conf import settings
from django.contrib.auth.models import AbstractBaseUser, AnonymousUser
from django.db import transaction

from store.models import Ledger, Order, OrderLine, Product

Status = Order.Status

# What the example's test cards make of the payment service, as parameters of the stub.
CARDS: dict[str, dict[str, str]] = {
    "good": {},
    "declined": {"status": "402"},
    "broken": {"status": "500"},
    "lost": {"fault": "reset"},
}


@dataclass(frozen=True)
class Address:
    name: str = ""
    street: str = ""
    zip: str = ""
    city: str = ""


def place(
    reference: str,
    user: AbstractBaseUser | AnonymousUser,
    address: Address,
    lines: Sequence[tuple[Product, int]],
) -> Order:
    """Write down the order before anybody is asked for money."""
    with transaction.atomic():
        Ledger.objects.create(reference=reference, event=Ledger.Event.STARTED)
        order = Order.objects.create(
            reference=reference,
            user=user if user.is_authenticated else None,
            name=address.name,
            street=address.street,
            zip=address.zip,
            city=address.city,
            total=sum((product.price * quantity for product, quantity in lines), Decimal(0)),
        )
        OrderLine.objects.bulk_create(
            OrderLine(order=order, product=product, quantity=quantity, price=product.price)
            for product, quantity in lines
        )
    return order


async def settle(order: Order, card: str = "good", latency: float | None = None) -> None:
    """Ask shipping, payment and fraud, then finish the order by what they say.

    `latency` (milliseconds) is for the stub, so that every request of a load test can have its
    own slow services.
    """
    stub = {} if latency is None else {"latency": str(latency)}
    goods = {"reference": order.reference, "zip": order.zip, "amount": str(order.total)}

    shipping, payment, fraud = await layby.gather(
        layby.get(
            f"{settings.SERVICES}/shipping/quote",
            params={"zip": order.zip, "grams": str(order.grams), **stub},
            timeout=settings.SERVICES_TIMEOUT,
        ),
        layby.post(
            f"{settings.SERVICES}/payment/charge",
            params={**CARDS[card], **stub},
            json=goods,
            headers={"Idempotency-Key": order.reference},
            timeout=settings.SERVICES_TIMEOUT,
        ),
        layby.post(
            f"{settings.SERVICES}/fraud/check",
            params=stub,
            json=goods,
            timeout=settings.SERVICES_TIMEOUT,
        ),
        return_exceptions=True,
    )

    order.status, order.charge = payment_outcome(payment)
    order.delivery_days = answer(shipping).get("days")
    if order.status == Status.PAID and answer(fraud).get("verdict") != "accept":
        order.status = Status.REVIEW
    with transaction.atomic():
        order.save(update_fields=["status", "charge", "delivery_days"])
        Ledger.objects.create(reference=order.reference, event=Ledger.Event.FINISHED)


def payment_outcome(result: layby.Response | Exception) -> tuple[Status, str]:
    """The status that a charge leaves the order in, and the charge's number."""
    if isinstance(result, layby.ConnectError | layby.Refused):
        return Status.FAILED, ""  # Nobody heard of the charge.
    if not isinstance(result, Exception) and result.status_code >= 400:
        return Status.FAILED, ""  # The service said no.
    charge = answer(result).get("charge")
    # Silence, a reset or garbage: the money may be gone all the same, so do not say it is not.
    return (Status.PAID, charge) if isinstance(charge, str) else (Status.REVIEW, "")


def answer(result: layby.Response | Exception) -> dict[str, Any]:
    """The JSON object of a good answer; empty for every other way it can have gone."""
    if isinstance(result, layby.FetchError):
        return {}
    if isinstance(result, Exception):
        raise result
    try:
        value = result.json() if result.is_success else {}
    except (ValueError, layby.FetchError):
        return {}
    return value if isinstance(value, dict) else {}


def quote(zip_code: str, grams: int) -> dict[str, Any]:
    """A shipping quote for sync code: `.result()` instead of `await`. Empty if there is none."""
    fetch = layby.get(
        f"{settings.SERVICES}/shipping/quote",
        params={"zip": zip_code, "grams": str(grams)},
        timeout=settings.SERVICES_TIMEOUT,
    )
    try:
        return answer(fetch.result())
    except layby.FetchError as error:
        return answer(error)
