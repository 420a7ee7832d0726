"""Products, orders, and the ledger in which every checkout leaves its traces."""

from __future__ import annotations

from decimal import Decimal

from django.conf import settings
from django.db import models
from django.urls import reverse
from django.utils.translation import gettext_lazy as _


class Product(models.Model):
    slug = models.SlugField(unique=True)
    name = models.CharField(_("name"), max_length=100)
    description = models.TextField(_("description"))
    price = models.DecimalField(_("price"), max_digits=8, decimal_places=2)
    grams = models.PositiveIntegerField(_("weight in grams"))

    class Meta:
        ordering = ("name",)
        verbose_name = _("product")
        verbose_name_plural = _("products")

    def __str__(self) -> str:
        return self.name

    def get_absolute_url(self) -> str:
        return reverse("product", args=[self.slug])


class Order(models.Model):
    class Status(models.TextChoices):
        OPEN = "open", _("being processed")
        PAID = "paid", _("paid")
        REVIEW = "review", _("under review")
        FAILED = "failed", _("not paid")

    # Chosen by the client. Not unique on purpose, here and in the ledger: if anything ever ran
    # a checkout twice, two rows would show it, where a constraint would hide it.
    reference = models.CharField(_("reference"), max_length=64, db_index=True)
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        null=True,
        blank=True,
        on_delete=models.SET_NULL,
        related_name="orders",
    )
    status = models.CharField(
        _("status"), max_length=10, choices=Status.choices, default=Status.OPEN
    )
    name = models.CharField(_("name"), max_length=100, blank=True)
    street = models.CharField(_("street"), max_length=100, blank=True)
    zip = models.CharField(_("postal code"), max_length=12, blank=True)
    city = models.CharField(_("city"), max_length=100, blank=True)
    total = models.DecimalField(_("total"), max_digits=10, decimal_places=2, default=Decimal(0))
    charge = models.CharField(_("charge"), max_length=64, blank=True)
    delivery_days = models.PositiveIntegerField(_("delivery days"), null=True, blank=True)
    created = models.DateTimeField(_("created"), auto_now_add=True)

    class Meta:
        ordering = ("-id",)
        verbose_name = _("order")
        verbose_name_plural = _("orders")

    def __str__(self) -> str:
        return f"{self.reference} ({self.status})"

    def get_absolute_url(self) -> str:
        return reverse("order", args=[self.pk])

    @property
    def grams(self) -> int:
        return sum(
            line.product.grams * line.quantity for line in self.lines.select_related("product")
        )


class OrderLine(models.Model):
    order = models.ForeignKey(Order, on_delete=models.CASCADE, related_name="lines")
    product = models.ForeignKey(Product, on_delete=models.PROTECT)
    quantity = models.PositiveIntegerField(_("quantity"))
    price = models.DecimalField(_("price"), max_digits=8, decimal_places=2)

    class Meta:
        verbose_name = _("order line")
        verbose_name_plural = _("order lines")

    def __str__(self) -> str:
        return f"{self.quantity} x {self.product}"

    @property
    def total(self) -> Decimal:
        return self.price * self.quantity


class Ledger(models.Model):
    """One row when a checkout starts and one when it has finished, whatever its end."""

    class Event(models.TextChoices):
        STARTED = "started", _("started")
        FINISHED = "finished", _("finished")

    reference = models.CharField(_("reference"), max_length=64, db_index=True)
    event = models.CharField(_("event"), max_length=10, choices=Event.choices)
    at = models.DateTimeField(_("at"), auto_now_add=True)

    class Meta:
        ordering = ("id",)
        verbose_name = _("ledger entry")
        verbose_name_plural = _("ledger")

    def __str__(self) -> str:
        return f"{self.reference} {self.event}"
