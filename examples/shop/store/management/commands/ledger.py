"""What became of every checkout, as JSON: to prove that each ran exactly once."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from collections import defaultdict
from typing import Any

from django.core.management import BaseCommand

from store.models import Ledger, Order


class Command(BaseCommand):
    help = "Print {reference: {started, finished, orders: [{status, user, total, charge}]}}."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--prefix", default="", help="only references that begin like this")

    def handle(self, *args: Any, **options: Any) -> None:
        found: defaultdict[str, dict[str, Any]] = defaultdict(
            lambda: {"started": 0, "finished": 0, "orders": []}
        )
        prefix = options["prefix"]
        for reference, event in Ledger.objects.filter(reference__startswith=prefix).values_list(
            "reference", "event"
        ):
            found[reference][event] += 1
        for order in Order.objects.filter(reference__startswith=prefix).select_related("user"):
            found[order.reference]["orders"].append(
                {
                    "id": order.pk,
                    "status": order.status,
                    "user": order.user.get_username() if order.user else None,
                    "total": str(order.total),
                    "charge": order.charge,
                }
            )
        self.stdout.write(json.dumps(found))
