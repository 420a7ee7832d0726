from django.db import models


class Order(models.Model):
    """What a view inserts before it parks, and updates afterwards."""

    owner = models.CharField(max_length=40)
    state = models.CharField(max_length=20)

    class Meta:
        app_label = "project"
