"""`"layby.django"` in INSTALLED_APPS: blocking `async def` views anywhere, and system checks."""

from __future__ import annotations

from django.apps import AppConfig
from django.core import checks

from layby._job import transaction_checks
from layby.django import _checks, _databases, _inplace


class LaybyConfig(AppConfig):
    name = "layby.django"
    label = "layby"
    verbose_name = "Layby"

    def ready(self) -> None:
        checks.register(_checks.check, _checks.TAG)
        if _inplace.wanted():
            _inplace.install()
        if _databases.explicit_transaction not in transaction_checks:
            transaction_checks.append(_databases.explicit_transaction)
