"""The pages of the shop. Plain Django, but for the `async def` of checkout."""

from __future__ import annotations

from contextlib import nullcontext

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.db import transaction
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.http import require_POST

from store import checkout as checkouts
from store.cart import Cart
from store.forms import AddForm, CheckoutForm, QuoteForm
from store.models import Order, Product


def products(request: HttpRequest) -> HttpResponse:
    return render(request, "store/products.html", {"products": Product.objects.all()})


def product(request: HttpRequest, slug: str) -> HttpResponse:
    found = get_object_or_404(Product, slug=slug)
    return render(request, "store/product.html", {"product": found, "form": AddForm()})


@require_POST
def add_to_cart(request: HttpRequest, slug: str) -> HttpResponse:
    found = get_object_or_404(Product, slug=slug)
    form = AddForm(request.POST)
    if not form.is_valid():
        context = {"product": found, "form": form}
        return render(request, "store/product.html", context, status=400)
    Cart(request.session).add(found, form.cleaned_data["quantity"])
    messages.success(request, _("%(product)s is in your cart.") % {"product": found.name})
    return redirect("cart")


def cart(request: HttpRequest) -> HttpResponse:
    lines = Cart(request.session).lines()
    total = sum(product.price * quantity for product, quantity in lines)
    return render(request, "store/cart.html", {"lines": lines, "total": total})


@require_POST
def empty_cart(request: HttpRequest) -> HttpResponse:
    Cart(request.session).clear()
    return redirect("cart")


async def checkout(request: HttpRequest, *, atomic: bool = False) -> HttpResponse:
    """Form, order, the three services, order page.

    With `atomic` all of it is one transaction. A request with an open transaction cannot give up
    its database connection, so there layby waits in place: the slot stays taken, the answer is
    the same, and the log says once which line it was.
    """
    cart = Cart(request.session)
    lines = cart.lines()
    if not lines:
        messages.info(request, _("Your cart is empty."))
        return redirect("cart")

    form = CheckoutForm(request.POST if request.method == "POST" else None)
    if not form.is_valid():
        status = 400 if form.is_bound else 200
        context = {"form": form, "lines": lines}
        return render(request, "store/checkout.html", context, status=status)

    with transaction.atomic() if atomic else nullcontext():
        order = checkouts.place(form.cleaned_data["reference"], request.user, form.address(), lines)
        await checkouts.settle(order, form.cleaned_data["card"])

    if order.status == Order.Status.FAILED:
        # The cart stays as it is, for another try with another card.
        return render(request, "store/payment_failed.html", {"order": order}, status=402)
    cart.clear()
    request.session["orders"] = [*request.session.get("orders", []), order.pk]
    if order.status == Order.Status.PAID:
        messages.success(request, _("Thank you, %(name)s! It is paid.") % {"name": order.name})
    else:
        messages.warning(request, _("Thank you! We are looking at your order and will write."))
    return redirect(order)


def order(request: HttpRequest, pk: int) -> HttpResponse:
    found = get_object_or_404(Order.objects.prefetch_related("lines__product"), pk=pk)
    own = found.user_id is not None and found.user_id == request.user.pk
    if not (own or request.user.is_staff or pk in request.session.get("orders", [])):
        raise Http404
    return render(request, "store/order.html", {"order": found})


@login_required
def orders(request: HttpRequest) -> HttpResponse:
    own = Order.objects.filter(user_id=request.user.pk)
    return render(request, "store/orders.html", {"orders": own[:100]})


def shipping(request: HttpRequest) -> HttpResponse:
    """A sync view that asks a service."""
    form = QuoteForm(request.GET or None)
    quote = None
    if form.is_valid():
        quote = checkouts.quote(form.cleaned_data["zip"], form.cleaned_data["grams"])
    asked = form.is_bound and form.is_valid()
    return render(request, "store/shipping.html", {"form": form, "quote": quote, "asked": asked})
