"""`"layby.django"` in INSTALLED_APPS: blocking `async def` views without the gateway."""

from __future__ import annotations

from django.apps import AppConfig

from layby.django import _inplace


class LaybyConfig(AppConfig):
    name = "layby.django"
    label = "layby"
    verbose_name = "Layby"

    def ready(self) -> None:
        if _inplace.wanted():
            _inplace.install()
