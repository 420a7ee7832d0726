"""The cart: quantities by product, kept in the session."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.contrib.sessions.backends.base import SessionBase
from django.http import HttpRequest

from store.models import Product

MOST_OF_ONE = 99


class Cart:
    def __init__(self, session: SessionBase) -> None:
        self.session = session
        self.quantities: dict[str, int] = session.get("cart", {})

    def __len__(self) -> int:
        return sum(self.quantities.values())

    def add(self, product: Product, quantity: int) -> None:
        wanted = self.quantities.get(product.slug, 0) + quantity
        self.quantities[product.slug] = min(wanted, MOST_OF_ONE)
        self.session["cart"] = self.quantities

    def clear(self) -> None:
        self.quantities = {}
        self.session.pop("cart", None)

    def lines(self) -> list[tuple[Product, int]]:
        products = Product.objects.filter(slug__in=self.quantities)
        return [(product, self.quantities[product.slug]) for product in products]


def in_templates(request: HttpRequest) -> Mapping[str, Any]:
    return {"cart": Cart(request.session)}
