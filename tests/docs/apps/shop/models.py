"""The `shop.models` of the documents."""

from django.db import models


class Order(models.Model):
    zip_code = models.CharField(max_length=10)
    price = models.CharField(max_length=10)

    def __str__(self) -> str:
        return f"order {self.pk}"
